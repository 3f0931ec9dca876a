"""``config.json`` of the output: the donor's, with what the merge changed."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..checkpoint.layers import stack_layers
from .models import OpenModel
from .rows import Rows
from .types import OutputTensor


def output_config(config: Mapping[str, Any], found: Rows, outputs: Sequence[OutputTensor]) -> dict[str, Any]:
    """Return the donor's ``config`` with the output's dtype, number of layers and tie of the head."""
    result = copy.deepcopy(dict(config))
    # transformers writes here where the model was loaded from.
    result.pop("_name_or_path", None)
    levels = [level for level in (result, result.get("text_config")) if isinstance(level, dict)]
    dtype = str(_main_dtype(outputs)).removeprefix("torch.")
    keys = [(level, key) for level in levels for key in ("dtype", "torch_dtype") if key in level]
    for level, key in keys or [(result, "torch_dtype")]:
        level[key] = dtype
    if found.tied is not None:
        for level in [level for level in levels if "tie_word_embeddings" in level] or levels[:1]:
            level["tie_word_embeddings"] = found.tied
    _set_layers(result, found)
    return result


def _main_dtype(outputs: Sequence[OutputTensor]) -> torch.dtype:
    """Return the float dtype that holds most bytes of the output."""
    sizes: dict[torch.dtype, int] = {}
    for output in outputs:
        if output.dtype.is_floating_point:
            sizes[output.dtype] = sizes.get(output.dtype, 0) + output.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)


def _set_layers(config: dict[str, Any], found: Rows) -> None:
    """Write the new number of layers, and rebuild lists that hold one entry per layer."""
    for stacked in found.stacked:
        place = stack_layers(config, stacked.stack)
        if place is None:
            continue
        keys, before = place
        level = config
        for key in keys[:-1]:
            level = level[key]
        level[keys[-1]] = sum(length for _, _, length in stacked.slices)
        for key, value in level.items():
            if isinstance(value, list) and len(value) == before and before > 1:
                level[key] = [entry for origin in stacked.slices for entry in _entries(origin, keys[:-1], key, value)]


def _entries(origin: tuple[OpenModel, int, int], outer: Sequence[str], key: str, fallback: list) -> list:
    """Return the entries of a per-layer list for the layers that a slice takes from its first model."""
    model, start, length = origin
    level = model.checkpoint.config or {}
    for name in outer:
        level = level.get(name, {})
    entries = level.get(key, fallback)
    return entries[start : start + length]
