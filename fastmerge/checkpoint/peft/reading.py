"""Reads an adapter's folder: its config is checked, its tensors are sorted by what they do."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from ...errors import CheckpointError
from ..file_names import ADAPTER, INDEX, SINGLE
from ..folder import read_json, read_weights
from ..types import TensorEntry
from .config import check_config
from .kinds import SORTERS
from .stored import REMEDY, Stored
from .tokens import sort_tokens
from .types import PeftAdapter

__all__ = ["is_adapter", "read_adapter"]

_PREFIX = "base_model.model."
# What PEFT saves of the base itself: the tensor under an adapted embedding or head, and modules trained whole.
_OWN = re.compile(r"(.+)\.(?:base_layer|modules_to_save)\.(weight|bias)")


def is_adapter(folder: str) -> bool:
    """True for a folder that holds an adapter and no model."""
    there = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    return "adapter_config.json" in there and not there & {*SINGLE, *INDEX}


def read_adapter(folder: str) -> PeftAdapter:
    """Return what the PEFT adapter in ``folder`` does to its base.

    Raises:
        CheckpointError: no adapter, or of a kind that cannot be folded; all reasons are named.
    """
    if os.path.isfile(folder):
        raise CheckpointError(f"{folder}: is a file; name the folder of the adapter, which has its adapter_config.json")
    config_path = os.path.join(folder, "adapter_config.json")
    config = read_json(config_path) or {}
    check_config(config_path, config)
    for filename in ADAPTER:
        path = os.path.join(folder, filename)
        if os.path.exists(path):
            file, tensors = read_weights(path)
            if not tensors:
                raise CheckpointError(f"{path}: holds no tensor, so the adapter changes nothing (save it again)")
            stored = Stored(path, config, _named(path, tensors))
            SORTERS[config["peft_type"]](stored)
            sort_tokens(stored)
            _sort_whole(stored)
            _refuse_strange(stored)
            return PeftAdapter(file, stored.changes, stored.replaced, stored.experts)
    raise CheckpointError(f"{folder}: no {' or '.join(ADAPTER)} (download the adapter again)")


def _named(path: str, tensors: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Return the tensors without the prefix that PEFT gives them."""
    named = {name.removeprefix(_PREFIX): entry for name, entry in tensors.items()}
    if len(named) < len(tensors):
        twice = sorted(name for name in tensors if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) in tensors)
        listed = ", ".join(twice[:5])
        raise CheckpointError(f"{path}: {listed} stands there with and without {_PREFIX} (save the adapter again)")
    return named


def _sort_whole(stored: Stored) -> None:
    """Take the tensors that the adapter holds whole."""
    for name in list(stored.left):
        if match := _OWN.fullmatch(name):
            stored.replaced[f"{match[1]}.{match[2]}"] = stored.left.pop(name)
        elif _is_whole(name, stored):
            stored.replaced[name] = stored.left.pop(name)


def _is_whole(name: str, stored: Stored) -> bool:
    """True for a tensor that was trained itself: a bias, or of a module to save (PEFT compares the ends of names)."""
    module, _, kind = name.rpartition(".")
    if kind == "bias" and stored.config.get("bias", "none") != "none":
        return True
    parts = module.split(".")
    modules = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(outer.endswith(own) for own in stored.config.get("modules_to_save") or () for outer in modules)


def _refuse_strange(stored: Stored) -> None:
    strange = sorted([*stored.strange, *stored.left])
    if strange:
        kind = "pair of LoRA matrices" if stored.config["peft_type"] == "LORA" else "part of such an adapter"
        raise CheckpointError(
            f"{stored.path}: {len(strange)} tensors are no {kind}: {', '.join(strange[:5])} ({REMEDY})"
        )
