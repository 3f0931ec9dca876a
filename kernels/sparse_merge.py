r"""Fused sparse merge: keep, rescale, weight, elect, divide, scale, add to the base, round once.

Per element, in float32, each operation rounded separately, models in the order of ``tensors``::

    d_k = tensors[k] - base
    c_k = d_k * (factors[k] if kept by keeps[k] else 0)        multiplied, so NaN and infinity become NaN, never vanish
    vote none:      m = c_0 + c_1 + ...
    vote weighted:  s = c_0 + c_1 + ...                        elected sign: + if s >= 0 else -
    vote sum:       s = d'_0 + d'_1 + ...                      like weighted, over the kept deltas without their factors
    vote count:     s = sign(d'_0) + sign(d'_1) + ...          like weighted, over their signs; a NaN votes 0
                    m = 0 + sum of the c_k whose kept delta (vote weighted: whose c_k) has the elected sign
                    w = 0 + sum of their ``weights[k]`` (divide weights), or of ones (divide count)
    divide:         m = m / w                                  where w == 0, m is left as it is; not for divide none
    m = m * scale
    out = base + m                                             rounded once to out.dtype

With vote none, ``divide weights`` divides by the constant ``weights[0] + weights[1] + ...`` (1 where
its magnitude is below 1e-8) and ``divide count`` by the number of models. A zero never has a sign; NaN always
matches, so that it propagates. Every backend returns the same bits, for any chunking.

This one pass is the apply step of task arithmetic (Ilharco et al. 2023), TIES (Yadav et al. 2023),
DARE (Yu et al. 2024), breadcrumbs (Davari and Belilovsky 2023) and their relatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import _cuda, _native, _triton
from ._checks import check_group, checked_jobs, checked_scalars
from ._found import FoundFactors
from ._jobs import DIVIDES, VOTES, Divide, MergeJob, Vote, numbers
from ._registry import Order, operation
from .keep import Keep, check_keeps, kept

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["DIVIDES", "VOTES", "Divide", "MergeJob", "Vote", "sparse_merge", "sparse_merge_many"]


def sparse_merge(
    out: Tensor,
    base: Tensor,
    tensors: Sequence[Tensor],
    *,
    factors: Sequence[float] | FoundFactors,
    keeps: Sequence[Keep],
    weights: Sequence[float] | None = None,
    vote: Vote = "none",
    divide: Divide = "none",
    scale: float = 1.0,
    offset: int = 0,
    backend: str | None = None,
) -> None:
    """Write the sparse merge of ``tensors`` into ``out``.

    Args:
        out:     [...] float32, bfloat16 or float16; overwritten. May be ``base`` or one of ``tensors`` itself.
        base:    shaped like ``out``.
        tensors: N fine-tuned tensors shaped like ``out``, dtypes mixed freely.
        factors: N scalars that multiply the kept deltas: weight times rescale. What only the device knows of them and
                 of the boundaries of ``keeps`` (``answers``) is read by CUDA alone, which writes nothing where any of
                 it was not found.
        keeps:   N keep rules.
        weights: N scalars of the divisor; by default ``factors``.
        vote:    how the sign of an element is elected; "none" sums all contributions.
        divide:  what the elected sum is divided by.
        scale:   lambda, multiplied after the division.
        offset:  global index of the first element, for parts of a tensor.
        backend: pin a backend; by default the fastest available on the device.
    Raises:
        ValueError: shapes, counts or names are wrong; the message names the argument and its value.
        BackendError: a pinned backend cannot run.
    """
    job, _ = _checked(MergeJob(out, base, tensors, factors, keeps, weights, vote, divide, scale, offset))
    _sparse_merge(job, backend=_reading([job], backend))


def sparse_merge_many(jobs: Sequence[MergeJob], *, backend: str | None = None) -> None:
    """Write the sparse merges of ``jobs``, in few launches where the backend can; the bits are those of single calls.

    Args:
        jobs:    on one device; no job may write what another one reads or writes.
        backend: pin a backend; by default the fastest available on the device.
    Raises:
        ValueError: as ``sparse_merge``, naming the job.
        BackendError: a pinned backend cannot run.
    """
    _sparse_merge.many(checked_jobs(jobs, _checked), _reading(jobs, backend))


def _reading(jobs: Sequence[MergeJob], backend: str | None) -> str | None:
    """Return the backend that is asked for, or the one that reads answers of a device where there are any."""
    return backend if all(job.answered for job in jobs) else "cuda"


def _checked(job: MergeJob) -> tuple[MergeJob, torch.device]:
    out, base, tensors, factors, keeps, weights, vote, divide, scale, offset = job
    device = check_group(tensors, base, out)
    rounded = checked_scalars("factors", numbers(factors), len(tensors))
    weights = rounded if weights is None else checked_scalars("weights", weights, len(tensors))
    [scale] = checked_scalars("scale", [scale], 1)
    if vote not in VOTES:
        raise ValueError(f"vote is {vote!r}; expected one of {', '.join(VOTES)}")
    if divide not in DIVIDES:
        raise ValueError(f"divide is {divide!r}; expected one of {', '.join(DIVIDES)}")
    if offset < 0:
        raise ValueError(f"offset is {offset}; expected a non-negative index")
    check_keeps(keeps, tensors, offset)
    if not isinstance(factors, FoundFactors):
        factors = rounded
    return MergeJob(out, base, tensors, factors, keeps, weights, vote, divide, scale, offset), device


@operation(
    "sparse_merge",
    gpu=Order(("triton", "cuda"), "1.0 to 3.6 times as fast as CUDA on an H200"),
    gpu_many=Order(("cuda", "triton"), "2.5 times as fast as Triton on an H200"),
)
def _sparse_merge(job: MergeJob) -> None:
    import torch

    assert job.weights is not None, "a checked job has weights"
    assert not isinstance(job.factors, FoundFactors), "CUDA merges what the device alone knows"
    start = job.base.float().flatten()
    deltas, contributions = [], []
    for tensor, factor, keep in zip(job.tensors, job.factors, job.keeps, strict=True):
        delta = tensor.float().flatten() - start
        mask = kept(delta, keep, job.offset)
        deltas.append(delta * mask.float())
        # A factor of exactly +0, whatever the sign of the model's: -0 would change the sign of a zero sum.
        contributions.append(delta * torch.where(mask, factor, 0.0))
    if job.vote == "none":
        merged = _sum(contributions)
        divisor = torch.full_like(merged, job.divisor)
    else:
        parts = contributions if job.vote == "weighted" else deltas
        # torch.sign(NaN) is 0.
        positive = _sum([torch.sign(part) for part in parts] if job.vote == "count" else parts) >= 0
        merged, divisor = torch.zeros_like(start), torch.zeros_like(start)
        for part, contribution, weight in zip(parts, contributions, job.weights, strict=True):
            # NaN is neither <= 0 nor >= 0, so it passes both tests.
            agrees = torch.where(positive, ~(part <= 0), ~(part >= 0))
            merged = torch.where(agrees, merged + contribution, merged)
            divisor = torch.where(agrees, divisor + (weight if job.divide == "weights" else 1.0), divisor)
    if job.divide != "none":
        merged = torch.where(divisor == 0, merged, merged / divisor)
    job.out.copy_((start + merged * job.scale).view_as(job.out))


def _sum(terms: Sequence[Tensor]) -> Tensor:
    acc = terms[0]
    for term in terms[1:]:
        acc = acc + term
    return acc


def _cpu_many(jobs: Sequence[MergeJob]) -> None:
    _native.cpu_extension().sparse_merge(*_native.merges(jobs))


@_sparse_merge.backend("cpu", probe=_native.why_no_cpu_extension, many=_cpu_many)
def _cpu(job: MergeJob) -> None:
    _cpu_many([job])


@_sparse_merge.backend("triton", probe=_triton.why_unavailable)
def _run_triton(job: MergeJob) -> None:
    from ._triton.sparse_merge import sparse_merge as run

    run(job)


def _cuda_many(jobs: Sequence[MergeJob]) -> None:
    _cuda.extension().sparse_merge(*_native.merges(jobs), _cuda.stream(jobs[0].out))


@_sparse_merge.backend("cuda", probe=_cuda.why_unavailable, many=_cuda_many)
def _run_cuda(job: MergeJob) -> None:
    _cuda_many([job])
