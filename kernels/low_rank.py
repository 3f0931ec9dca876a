r"""Low-rank update: ``out = weight + scale * up @ down``, the fold of a LoRA adapter into its matrix.

Per element, in float32: ``acc = up[i, 0] * down[0, j]``, then one multiplication and one addition per
rank, in order, each rounded separately; ``acc * scale``; ``weight + acc``; rounded once to
``out.dtype``. Unlike a library matrix product, the result does not depend on how rows are chunked,
and every backend returns the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _cuda, _native, _triton
from ._checks import check_float, checked_scalars
from ._registry import Order, operation

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["low_rank_update"]


def low_rank_update(
    out: Tensor, weight: Tensor, up: Tensor, down: Tensor, scale: float, *, backend: str | None = None
) -> None:
    """Write ``weight + scale * up @ down`` into ``out``.

    Args:
        out:     [m, n] float32, bfloat16 or float16; overwritten. May be ``weight`` itself.
        weight:  [m, n].
        up:      [m, r] (LoRA's B), float32.
        down:    [r, n] (LoRA's A), float32.
        scale:   alpha / r, or alpha / sqrt(r) for rank-stabilized adapters.
        backend: pin a backend; by default the fastest available on the device.
    Raises:
        ValueError: shapes or dtypes disagree; the message names the argument and its value.
    """
    for name, tensor in (("out", out), ("weight", weight), ("up", up), ("down", down)):
        check_float(name, tensor)
        if tensor.dim() != 2:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected a matrix")
        if tensor.device != out.device:
            raise ValueError(f"{name} is on {tensor.device}, out is on {out.device}")
    rows, columns = out.shape
    rank = up.shape[1]
    for name, tensor, shape in (
        ("weight", weight, (rows, columns)),
        ("up", up, (rows, rank)),
        ("down", down, (rank, columns)),
    ):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape}")
    for name, tensor in (("up", up), ("down", down)):
        if tensor.dtype.itemsize != 4:
            raise ValueError(f"{name} has dtype {tensor.dtype}; expected float32")
    if rank == 0:
        raise ValueError("up has rank 0; expected at least one column")
    [scale] = checked_scalars("scale", [scale], 1)
    _low_rank(out, weight, up, down, scale, backend=backend)


@operation("low_rank", gpu=Order(("cuda", "triton"), "not yet compared"))
def _low_rank(out: Tensor, weight: Tensor, up: Tensor, down: Tensor, scale: float) -> None:
    acc = up[:, :1] * down[:1]
    for r in range(1, up.shape[1]):
        acc = acc + up[:, r : r + 1] * down[r : r + 1]
    out.copy_(weight.float() + acc * scale)


@_low_rank.backend("cpu", probe=_native.why_no_cpu_extension)
def _cpu(out: Tensor, weight: Tensor, up: Tensor, down: Tensor, scale: float) -> None:
    _native.cpu_extension().low_rank(
        _native.array_pair(out),
        _native.array_pair(weight),
        up.data_ptr(),
        down.data_ptr(),
        *out.shape,
        up.shape[1],
        scale,
    )


@_low_rank.backend("triton", probe=_triton.why_unavailable)
def _run_triton(out: Tensor, weight: Tensor, up: Tensor, down: Tensor, scale: float) -> None:
    from ._triton.low_rank import low_rank as run

    run(out, weight, up, down, scale)


@_low_rank.backend("cuda", probe=_cuda.why_unavailable)
def _run_cuda(out: Tensor, weight: Tensor, up: Tensor, down: Tensor, scale: float) -> None:
    arrays = _native.array_pair(out), _native.array_pair(weight), up.data_ptr(), down.data_ptr()
    _cuda.extension().low_rank(*arrays, *out.shape, up.shape[1], scale, _cuda.stream(out))
