r"""L1 or squared L2 norm of each delta, in whole and over what a keep rule keeps.

``total_k = sum |d|**p`` and ``kept_k = sum over kept |d|**p`` with ``d = tensors[k] - base`` (one float32
subtraction) and p = 1 or 2. Powers are exact in float64 and are accumulated over the fixed grid
(``_checks.lane_sums``), so every backend and chunking returns the same bits. Error bound: within
``72 * 2**-53`` of the exact sum, relatively. A NaN or infinite element makes both sums NaN or infinite.

What a random rule decides can be noted meanwhile, one bit per element, so that a merge need not draw it again: on the
processor alone. On an H200 the bits of three models of 64M elements are expected to take 12 us to write and to read,
and to save a merge 9 us, since it draws while it waits for memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastmerge.dtypes import float64

from . import _cuda, _native, _triton
from ._checks import check_group, check_offset, check_table, grid_chunks, lane_sums
from ._registry import Order, operation
from .keep import Keep, check_keeps, kept, mask_words, packed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["norm_partials"]


def norm_partials(
    partials: Tensor,
    tensors: Sequence[Tensor],
    base: Tensor | None,
    keeps: Sequence[Keep],
    *,
    power: int = 1,
    offset: int = 0,
    backend: str | None = None,
) -> None:
    """Write the partial norms of every grid chunk into ``partials``; ``_sums.total`` adds them up.

    Args:
        partials: [ceil(n / GRID), 2 N] float64; overwritten. Columns: total, kept of delta 0, then of delta 1, ...
        tensors:  N tensors of n elements: a whole tensor, or a part that starts on the grid.
        base:     shaped like them, or None.
        keeps:    N keep rules, none of a strided part: chunks of the grid have none. Of one that is ``noting`` the
                  words of ``drawn`` that hold these elements are overwritten, with 0 beyond the last element.
        power:    1 (L1 norm) or 2 (squared L2 norm).
        offset:   global index of the first element, a multiple of GRID.
        backend:  pin a backend; by default the fastest available on the device.
    Raises:
        ValueError: shapes, counts, power or offset are wrong, or a rule is noting on a GPU; the message names the
            argument and its value.
    """
    check_group(tensors, base)
    check_offset(offset)
    if power not in (1, 2):
        raise ValueError(f"power is {power}; expected 1 or 2")
    check_keeps(keeps, tensors, offset)
    if any(keep.row for keep in keeps):
        raise ValueError("keeps has a rule of a strided part; norms are summed over chunks of whole tensors")
    for k, keep in enumerate(keeps):
        if keep.drawn is not None and (not keep.random or tensors[k].device.type != "cpu"):
            raise ValueError(
                f"keeps[{k}].drawn is a mask, of rule {keep.rule} on {tensors[k].device}; expected None, except of "
                "random rules on the processor"
            )
    shape = (grid_chunks(tensors[0].numel()), 2 * len(tensors))
    check_table("partials", partials, float64, shape)
    # CUDA alone reads boundaries that the device alone knows; where one was not found the norms are NaN.
    backend = "cuda" if any(keep.found for keep in keeps) else backend
    _norms(partials, tensors, base, list(keeps), power, offset, backend=backend)


@operation("norms", gpu=Order(("triton", "cuda"), "1.2 to 1.5 times as fast as CUDA on an H200"))
def _norms(
    partials: Tensor, tensors: Sequence[Tensor], base: Tensor | None, keeps: Sequence[Keep], power: int, offset: int
) -> None:
    for k, (tensor, keep) in enumerate(zip(tensors, keeps, strict=True)):
        delta = (tensor.float() if base is None else tensor.float() - base.float()).flatten()
        powers = delta.double().abs() if power == 1 else delta.double() * delta.double()
        mask = kept(delta, keep, offset)
        if keep.drawn is not None:
            keep.drawn[offset >> 5 : mask_words(offset + delta.numel())] = packed(mask)
        # Multiplied rather than selected: a dropped NaN stays visible.
        factor = mask.double()
        partials[:, 2 * k] = lane_sums(powers)
        partials[:, 2 * k + 1] = lane_sums(powers * factor)


@_norms.backend("cpu", probe=_native.why_no_cpu_extension)
def _cpu(
    partials: Tensor, tensors: Sequence[Tensor], base: Tensor | None, keeps: Sequence[Keep], power: int, offset: int
) -> None:
    arrays, rules = _native.arrays(tensors, base), _native.rules(keeps)
    _native.cpu_extension().norms(partials.data_ptr(), arrays, rules, power, offset)


@_norms.backend("triton", probe=_triton.why_unavailable)
def _run_triton(
    partials: Tensor, tensors: Sequence[Tensor], base: Tensor | None, keeps: Sequence[Keep], power: int, offset: int
) -> None:
    from ._triton.norms import norms as run

    run(partials, tensors, base, keeps, power, offset)


@_norms.backend("cuda", probe=_cuda.why_unavailable)
def _run_cuda(
    partials: Tensor, tensors: Sequence[Tensor], base: Tensor | None, keeps: Sequence[Keep], power: int, offset: int
) -> None:
    arrays, rules = _native.arrays(tensors, base), _native.rules(keeps)
    _cuda.extension().norms(partials.data_ptr(), arrays, rules, power, offset, _cuda.stream(partials))
