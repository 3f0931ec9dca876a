r"""Random masks whose keep probability rises with the rank of a magnitude in its row (MAGPRUNE, of DELLA).

The tensor is seen as [outer, length, inner]; a row runs along the middle dimension. The elements of a row are ranked
by |delta|, ascending, equal ones by their position (a stable sort); every NaN has one magnitude, just above infinity.
In exact arithmetic the element of rank r = 0 .. n - 1 of a row of n is kept with probability::

    density - epsilon + 2 * epsilon * r / (n - 1)              in a row of one element: density

It is dropped iff its 32-bit random word (``philox``, by global element index) is below ``T(r)``, in integers::

    round32(x) = min(nearest integer to x * 2**32 (ties to even), 2**32 - 1),   x in float64
    T(r)       = first - floor((step * r + 2**30) / 2**31)
    first      = round32(1 - (density - epsilon));             in a row of one element: round32(1 - density), step 0
    step       = floor((first - round32(1 - (density + epsilon))) * 2**31 / (n - 1))

No product exceeds 63 bits. Every backend sets the same bits.

Deep, Bhardwaj and Poria 2024, arXiv 2406.11617.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from fastmerge.dtypes import int32

from . import _cuda, _native
from ._checks import check_group, check_table
from ._registry import Order, operation
from .keep import magnitude_bits, mask_words, packed
from .philox import drop_threshold, random_words

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Ranked", "rank_mask"]


class Ranked(NamedTuple):
    """A model whose elements are kept by their rank, and how likely.

    Attributes:
        model:   its index among the non-base models, 0 <= model < 2**32.
        density: mean keep probability, 0 < density - epsilon and density + epsilon < 1.
        epsilon: half of the range of keep probabilities, >= 0.
    """

    model: int
    density: float
    epsilon: float


def rank_mask(
    masks: Sequence[Tensor],
    tensors: Sequence[Tensor],
    base: Tensor | None,
    models: Sequence[Ranked],
    *,
    rows: tuple[int, int, int],
    key: int,
    offset: int = 0,
    backend: str | None = None,
) -> None:
    """Write the keep masks of the deltas of some models into ``masks``, one bit per element, for ``keep_masked``.

    Args:
        masks:   N masks, [mask_words(offset % 32 + n)] int32, overwritten, from element ``offset - offset % 32`` on;
                 the bits before the first element and beyond the last are 0.
        tensors: N tensors of n elements, contiguous: whole, or some slices of the outer dimension.
        base:    shaped like them, or None.
        models:  of the tensors, one each.
        rows:    (outer, length, inner), whose product is n; ranks are taken along ``length``, below 2**31.
        key:     64-bit key of the tensor (``tensor_key``).
        offset:  global index of the first element, a multiple of ``length * inner``.
        backend: pin a backend; by default the fastest available on the device.
    Raises:
        ValueError: a shape or a number is wrong; the message names the argument and its value.
        BackendError: a pinned backend cannot run.
    """
    check_group(tensors, base)
    numel = tensors[0].numel()
    if offset < 0 or offset % max(1, rows[1] * rows[2]):
        raise ValueError(f"offset is {offset}; expected the first element of a slice of {rows[1]} x {rows[2]}")
    if not len(masks) == len(models) == len(tensors):
        raise ValueError(f"there are {len(masks)} masks and {len(models)} models; expected {len(tensors)}, as tensors")
    for k, (mask, tensor) in enumerate(zip(masks, tensors, strict=True)):
        check_table(f"masks[{k}]", mask, int32, (mask_words(offset % 32 + numel),))
        if mask.device != tensor.device:
            raise ValueError(f"masks[{k}] is on {mask.device}, tensors[{k}] is on {tensor.device}")
    if math.prod(rows) != numel or min(rows) < 0 or rows[1] >= 2**31:
        raise ValueError(f"rows is {rows}; expected three sizes of {numel} elements, the second below 2**31")
    if not 0 <= key < 2**64:
        raise ValueError(f"key is {key}; expected 64 bits")
    for k, (model, density, epsilon) in enumerate(models):
        if not (epsilon >= 0 and density - epsilon > 0 and density + epsilon < 1):
            raise ValueError(
                f"models[{k}] has density {density} and epsilon {epsilon}; expected epsilon >= 0, "
                "density - epsilon > 0 and density + epsilon < 1"
            )
        if not 0 <= model < 2**32:
            raise ValueError(f"models[{k}] has the number {model}; expected 32 bits")
    if numel:
        draws = [(model, *_thresholds(rows[1], density, epsilon)) for model, density, epsilon in models]
        _rank_mask(masks, tensors, base, draws, rows, key, offset, backend=backend)
    else:
        for mask in masks:
            if mask.numel():
                mask[:] = 0


def _thresholds(length: int, density: float, epsilon: float) -> tuple[int, int]:
    """Return ``first`` and ``step`` of the drop thresholds of a row."""
    if length == 1:
        return _round32(1 - density), 0
    first, last = _round32(1 - (density - epsilon)), _round32(1 - (density + epsilon))
    return first, ((first - last) << 31) // (length - 1)


def _round32(probability: float) -> int:
    return min(drop_threshold(probability), 2**32 - 1)


@operation("rank_mask", gpu=Order(("cuda",), "the only one"))
def _rank_mask(
    masks: Sequence[Tensor], tensors: Sequence[Tensor], base: Tensor | None, draws: list[tuple[int, int, int]],
    rows: tuple[int, int, int], key: int, offset: int,
) -> None:  # fmt: skip
    import torch

    for mask, tensor, (model, first, step) in zip(masks, tensors, draws, strict=True):
        delta = tensor.float() if base is None else tensor.float() - base.float()
        order = magnitude_bits(delta.flatten()).view(rows).argsort(dim=1, stable=True)
        positions = torch.arange(rows[1], device=order.device)[None, :, None].expand_as(order)
        ranks = torch.empty_like(order).scatter_(1, order, positions)
        thresholds = first - ((step * ranks + 2**30) >> 31)
        bits = torch.zeros(offset % 32 + tensor.numel(), dtype=torch.bool, device=mask.device)
        bits[offset % 32 :] = random_words(key, model, offset, tensor.numel(), mask.device) >= thresholds.flatten()
        mask.copy_(packed(bits))


@_rank_mask.backend("cpu", probe=_native.why_no_cpu_extension)
def _cpu(
    masks: Sequence[Tensor], tensors: Sequence[Tensor], base: Tensor | None, draws: list[tuple[int, int, int]],
    rows: tuple[int, int, int], key: int, offset: int,
) -> None:  # fmt: skip
    addresses = [mask.data_ptr() for mask in masks]
    _native.cpu_extension().rank_mask(addresses, _native.arrays(tensors, base), draws, rows, key, offset)


@_rank_mask.backend("cuda", probe=_cuda.why_unavailable)
def _run_cuda(
    masks: Sequence[Tensor], tensors: Sequence[Tensor], base: Tensor | None, draws: list[tuple[int, int, int]],
    rows: tuple[int, int, int], key: int, offset: int,
) -> None:  # fmt: skip
    import torch

    stream, extension = _cuda.stream(tensors[0]), _cuda.extension()
    nbytes = extension.rank_workspace(rows[0] * rows[2] * len(draws), rows[1], stream)
    workspace = torch.empty(nbytes // 8, dtype=torch.int64, device=tensors[0].device)
    addresses, arrays = [mask.data_ptr() for mask in masks], _native.arrays(tensors, base)
    extension.rank_mask(addresses, arrays, draws, rows, key, offset, workspace.data_ptr(), stream)
