r"""Weighted sum of N tensors: ``out = sum_k weights[k] * tensors[k]``.

Accumulated in float32, in the order of ``tensors``: the first product, then one multiplication and
one addition per tensor, each rounded separately; rounded once (nearest, ties to even) to
``out.dtype``. Every backend returns the same bits, for any chunking. NaN and infinity propagate.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import _cuda, _native, _triton
from ._checks import check_group, check_scalars, float32
from ._registry import operation

__all__ = ["weighted_sum"]


def weighted_sum(
    out: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], *, backend: str | None = None
) -> None:
    """Write the weighted sum of ``tensors`` into ``out``.

    Args:
        out:     [...] float32, bfloat16 or float16; overwritten. May be one of ``tensors`` itself.
        tensors: N tensors shaped like ``out``, contiguous, on its device, dtypes mixed freely.
        weights: N scalars, dimensionless, rounded to float32; not normalized here.
        backend: pin a backend; by default the fastest available on the device.
    Raises:
        ValueError: shapes, devices or counts disagree; the message names the argument and its value.
        BackendError: a pinned backend cannot run.
    """
    check_group(tensors, None, out)
    check_scalars("weights", weights, len(tensors))
    _weighted_sum(out, tensors, [float32(w) for w in weights], backend=backend)


@operation("weighted_sum")
def _weighted_sum(out: Tensor, tensors: Sequence[Tensor], weights: Sequence[float]) -> None:
    acc = tensors[0].float() * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        acc = acc + tensor.float() * weight
    out.copy_(acc)


@_weighted_sum.backend("cpu", probe=_native.why_no_cpu_extension)
def _cpu(out: Tensor, tensors: Sequence[Tensor], weights: Sequence[float]) -> None:
    _native.cpu_extension().weighted_sum(*_native.one(out), *_native.group(tensors, None), list(weights))


@_weighted_sum.backend("triton", probe=_triton.why_unavailable)
def _run_triton(out: Tensor, tensors: Sequence[Tensor], weights: Sequence[float]) -> None:
    from ._triton.weighted_sum import weighted_sum as run

    run(out, tensors, weights)


_weighted_sum.backend("cuda", probe=_cuda.why_unavailable)(_cuda.weighted_sum)
