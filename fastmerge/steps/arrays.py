"""What functions of elements compute with: torch's tensors, or numpy's arrays where a merge needs no torch.

Both have operators, comparisons, ``abs`` and in-place forms (``+=``) in common, and keep float32 where a factor is a
number of Python; what they call by different names stands here. Annotations say ``Tensor`` for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels import Strip, as_strip

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "above", "as_strip", "clamp", "copy", "float_of", "join", "maximum", "minimum", "quiet", "values_of", "where",
    "zeros_like",
]  # fmt: skip


def _module(values: Any) -> ModuleType:
    if isinstance(values, np.ndarray):
        return np
    import torch

    return torch


def values_of(tensor: Tensor) -> Tensor:
    """Return what computes with the elements of a tensor or strip, on the same memory; float32 of a strip."""
    return tensor.numpy() if type(tensor) is Strip else tensor


def quiet() -> AbstractContextManager:
    """Return a context without numpy's warnings: infinity and NaN are results like others."""
    return np.errstate(all="ignore")


def copy(values: Tensor) -> Tensor:
    return values.copy() if isinstance(values, np.ndarray) else values.clone()


def zeros_like(values: Tensor) -> Tensor:
    return _module(values).zeros_like(values)


def where(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Return ``yes`` where a condition is true or 1, elsewhere ``no``; all are vectors, the latter two of float32.

    On the processor by bits: torch and numpy branch for each element, which takes ten times as long.
    """
    if isinstance(condition, np.ndarray):
        mask = condition.astype(np.int32)
        np.negative(mask, out=mask)
        other = no.view(np.int32)
        chosen = yes.view(np.int32) ^ other
    elif condition.device.type == "cpu":
        import torch

        mask = condition.to(torch.int32).neg_()
        other = no.view(torch.int32)
        chosen = yes.view(torch.int32) ^ other
    else:
        return yes.where(condition.bool(), no)
    chosen &= mask
    chosen ^= other
    return chosen.view(yes.dtype)


def maximum(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the larger of each two elements, NaN where one is."""
    return _module(a).maximum(a, b, out=out)


def minimum(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the smaller of each two elements, NaN where one is."""
    return _module(a).minimum(a, b, out=out)


def clamp(values: Tensor, least: float, most: float | None = None) -> Tensor:
    """Return values that lie below ``least`` or above ``most`` as these; NaN stays."""
    if isinstance(values, np.ndarray):
        return np.clip(values, np.float32(least), None if most is None else np.float32(most))
    return values.clamp(least, most)


def float_of(mask: Tensor) -> Tensor:
    """Return 1 where ``mask`` is true and 0 elsewhere, float32."""
    if isinstance(mask, np.ndarray):
        return mask.astype(np.float32)
    import torch

    return mask.view(torch.uint8).float()  # of bools it takes five times as long


def above(values: Tensor, least: Tensor | float) -> Tensor:
    """Return 1 where values lie above ``least`` and 0 elsewhere, float32: what to multiply or to count by."""
    if isinstance(values, np.ndarray):
        return float_of(values > least)
    import torch

    return torch.gt(values, least, out=torch.empty_like(values))  # four times as fast as to bools


def join(parts: Sequence[Tensor]) -> Tensor:
    """Return vectors in one."""
    return _module(parts[0]).concatenate(tuple(parts))
