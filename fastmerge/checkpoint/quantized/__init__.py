"""Quantized checkpoints: which stored tensors make up a weight, and how its values follow. One format per file.

A format is a function ``find(stored, name)``: it returns the tensor whose codes are stored as ``name``, or None. A new
one is a file of its own and a name in ``FORMATS``. The files are loaded where a checkpoint may have codes.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import replace

from ...dtypes import bfloat16, float16, float32, float64
from ...errors import CheckpointError
from ..types import Checkpoint, TensorEntry, in_order
from ._stored import CONFIG_KEYS, Found, Stored, levels, sections

__all__ = ["CONFIG_KEYS", "FORMATS", "decoded", "levels"]

# In this order: the first that knows a tensor takes it.
FORMATS = ("bitsandbytes", "gpt_oss", "gptq", "awq", "packed_int", "fp4", "mlx", "scaled")

# What belongs to quantized arithmetic and not to the weights: scales of activations and of the cache.
_RUNTIME = (
    "input_scale", "input_zero_point", "input_global_scale", "activation_scale", "act_scale", "act_scales",
    "output_scale", "output_zero_point", "output_global_scale", "k_scale", "v_scale", "q_scale", "prob_output_scale",
    "weight_shape", "weight_format",
)  # fmt: skip
_NUMBERS = frozenset((float64, float32, bfloat16, float16))
_REASON = "a scale of activations or of the cache, of use only to quantized arithmetic"


def decoded(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with the names, shapes and dtypes that its tensors have when they are decoded.

    Only headers, configs and tensors of a few bytes that describe others are read.

    Raises:
        CheckpointError: a format that is not offered, scales that are missing or do not fit, codes without scales.
    """
    if checkpoint.source.endswith(".gguf"):  # which says itself how its tensors are coded
        return checkpoint
    stored = Stored(checkpoint)
    if stored.settings:
        from .refused import refuse_method

        refuse_method(stored)
    tensors: dict[str, TensorEntry] = {}
    used: set[str] = set()
    formats: set[str] = set()
    # Every format has codes, or descriptions of them, of another type.
    whole = all(entry.dtype in _NUMBERS for entry in checkpoint.tensors.values())
    for name in () if whole else checkpoint.tensors:
        found = _find(stored, name)
        if found is not None:
            if found.name in tensors or (found.name != name and found.name in checkpoint.tensors):
                raise stored.wrong(name, f"is the quantized {found.name}, which is there a second time")
            tensors[found.name] = found.entry
            used.update(found.stored)
            assert found.entry.coded is not None
            formats.add(found.entry.coded.format)
    rest = {name: entry for name, entry in checkpoint.tensors.items() if name not in used}
    left_out = {name: _REASON for name in rest if formats and name.rpartition(".")[2] in _RUNTIME}
    rest = {name: entry for name, entry in rest.items() if name not in left_out}
    if not whole:
        from .refused import leftover_codes

        leftover_codes(stored, rest)
    if not formats:
        if stored.settings and any(sections(checkpoint.config or {})):
            kind = stored.method or "quantized"
            raise CheckpointError(
                f"{checkpoint.folder}/config.json: says that the weights are quantized ({kind}), but no tensor is "
                f"(if they were dequantized, remove {' or '.join(CONFIG_KEYS[:2])} from the config)"
            )
        return checkpoint
    return replace(
        checkpoint,
        tensors=in_order(tensors | rest),
        quantized=tuple(sorted(formats)),
        left_out={**checkpoint.left_out, **left_out},
    )


@functools.cache
def _finders() -> tuple[Callable[[Stored, str], Found | None], ...]:
    return tuple(importlib.import_module(f"{__name__}.{name}").find for name in FORMATS)


def _find(stored: Stored, name: str) -> Found | None:
    return next((found for find in _finders() if (found := find(stored, name)) is not None), None)
