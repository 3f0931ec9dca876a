"""Rows of embeddings and heads that were trained by themselves: PEFT's trainable tokens."""

from __future__ import annotations

import re
from typing import Any

from .stored import Stored
from .types import Change

__all__ = ["sort_tokens"]

_DELTA = re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_(?P<role>delta)")


def sort_tokens(stored: Stored) -> None:
    """Take the rows that replace those of some tokens. The indices are in the config, by module or for all."""
    for module, parts in stored.take(_DELTA).items():
        entry = parts["delta"]
        indices = _indices(stored.config, module)
        if not _are_indices(indices) or len(entry.shape) != 2 or entry.shape[0] != len(indices):
            found = "no list of indices" if not isinstance(indices, list) else f"{len(indices)} indices"
            what = f"{module}: trainable tokens of shape {list(entry.shape)}, but the config has {found}"
            raise stored.wrong(what, "save the adapter again")
        stored.change(f"{module}.weight", Change("rows", (entry,), detail=tuple(indices)))


def _indices(config: Any, module: str) -> Any:
    """Return the indices of a module: ``token_indices``, or ``trainable_token_indices`` by the ends of names."""
    if config["peft_type"] == "TRAINABLE_TOKENS":
        return config.get("token_indices")
    indices = config.get("trainable_token_indices")
    if isinstance(indices, dict):
        ends = [end for end in indices if f".{module}".endswith(f".{end}")]
        return indices[ends[0]] if ends else None
    return indices


def _are_indices(values: Any) -> bool:
    return (
        isinstance(values, list)
        and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values)
        and len(set(values)) == len(values)
    )
