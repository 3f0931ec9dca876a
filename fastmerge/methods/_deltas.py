"""Merged deltas as whole float32 tensors, and the rounding noise in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import kernels
from ..kernels import GRID
from ..steps.apply import Apply
from ..steps.source import Chunk

if TYPE_CHECKING:
    from torch import Tensor

# Elements of a delta that are formed at once: what that takes beside the delta does not grow with the tensor.
BLOCK = 16 * GRID

# A value x of a dtype with machine epsilon e is off by up to e/2 * 2^floor(log2 |x|). The standard deviation of that is
# 0.212 e of the root mean square of normal values of any scale, and 0.19 to 0.23 of uniform ones.
ROUNDING = 0.212


def merged_delta(step: Apply, base: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Return what ``step`` adds to ``base``, exactly, float32 and flat.

    ``step`` runs over deltas and a base of zeros, in blocks: keep rules and roundings are those of the sparse merge.
    """
    import torch

    merged = torch.zeros(base.numel(), dtype=torch.float32, device=base.device)
    start, flat = base.view(-1), [tensor.view(-1) for tensor in tensors]
    for offset in range(0, len(merged), BLOCK):
        block = slice(offset, offset + BLOCK)
        deltas = [torch.empty_like(merged[block]) for _ in flat]
        for delta, tensor in zip(deltas, flat, strict=True):
            kernels.weighted_sum(delta, [tensor[block], start[block]], [1.0, -1.0])
        step(merged[block], Chunk(merged[block], tuple(deltas), offset))
    return merged


def rounding_noise(tensors: Sequence[Tensor], gains: Sequence[float], merged: Tensor) -> float:
    """Return about the standard deviation of the noise in ``merged`` that comes from rounding the models.

    Rounding errors of models are independent; where a merged delta was trimmed to zero there are none.
    """
    return noise_of(noise_sums(tensors, gains, merged, merged.numel()), merged.numel())


def noise_sums(tensors: Sequence[Tensor], gains: Sequence[float], merged: Tensor, numel: int) -> tuple[float, float]:
    """Return what ``rounding_noise`` is made of, for a part of ``numel`` elements; parts add up.

    That are the variance of the rounding errors of all models, and how many elements of ``merged`` are not 0.
    """
    import torch

    variance = 0.0
    for tensor, gain in zip(tensors, gains, strict=True):
        blocks = tensor.view(-1).split(BLOCK)
        squares = sum(float(torch.linalg.vector_norm(block, dtype=torch.float32)) ** 2 for block in blocks)
        variance += (gain * ROUNDING * torch.finfo(tensor.dtype).eps) ** 2 * squares / numel
    return variance, float(torch.count_nonzero(merged))


def noise_of(sums: Sequence[float], numel: int) -> float:
    """Return the standard deviation of the noise in ``numel`` elements from the sums over all parts."""
    variance, kept = sums
    return math.sqrt(variance * kept / numel)
