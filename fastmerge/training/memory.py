"""Where averages lie, and how they meet tensors that lie elsewhere: on the device, or in host memory beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from ..kernels import SumJob, weighted_sum_many

__all__ = ["allocate", "meet", "write"]

# Bytes of tensors that are in host memory at a time on their way between a device and averages there.
STAGED_BYTES = 1 << 26


def allocate(like: Tensor, dtype: torch.dtype, on_host: bool) -> Tensor:
    """Return zeros shaped like a tensor, where it lies or in host memory: pinned where it lies on a GPU."""
    if not on_host:
        return torch.zeros(like.shape, dtype=dtype, device=like.device)
    return torch.zeros(like.shape, dtype=dtype, device="cpu", pin_memory=like.is_cuda)


def meet(
    values: Mapping[str, Tensor], on_host: bool, jobs: Callable[[str, Tensor], list[SumJob]], backend: str | None
) -> None:
    """Run the jobs of every tensor: one launch on each device, or in batches through host memory."""
    values = _with_elements(values)
    if on_host:
        for batch in _batches(values):
            staged = {name: _staged(value) for name, value in batch.items()}
            _wait(batch.values())
            weighted_sum_many([job for name, value in staged.items() for job in jobs(name, value)], backend=backend)
        return
    for on_device in _by_device(values):
        dense = {name: value.contiguous() for name, value in on_device.items()}
        weighted_sum_many([job for name, value in dense.items() for job in jobs(name, value)], backend=backend)


def write(
    targets: Mapping[str, Tensor],
    on_host: bool,
    result: Callable[[str], tuple[Sequence[Tensor], Sequence[float]]],
    backend: str | None,
) -> None:
    """Write the sum of every name into its target, rounded once to the dtype of that."""
    targets = _with_elements(targets)
    for batch in _batches(targets) if on_host else _by_device(targets):
        jobs = {}
        for name, target in batch.items():
            tensors, weights = result(name)
            away = target.device != tensors[0].device or not target.is_contiguous()
            out = torch.empty(target.shape, dtype=target.dtype, device=tensors[0].device) if away else target
            jobs[name] = SumJob(out, tensors, weights)
        weighted_sum_many(list(jobs.values()), backend=backend)
        for name, target in batch.items():
            if jobs[name].out is not target:
                target.copy_(jobs[name].out)
            elif not target.is_inference():
                torch.autograd.graph.increment_version(target)


def _with_elements(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what is empty, such as the shard of a rank that has none of a small tensor."""
    return {name: tensor for name, tensor in tensors.items() if tensor.numel()}


def _batches(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    batch: dict[str, Tensor] = {}
    nbytes = 0
    for name, tensor in tensors.items():
        if batch and nbytes + tensor.nbytes > STAGED_BYTES:
            yield batch
            batch, nbytes = {}, 0
        batch[name] = tensor
        nbytes += tensor.nbytes
    if batch:
        yield batch


def _staged(value: Tensor) -> Tensor:
    if not value.is_cuda:
        return value.contiguous()
    staged = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    return staged.copy_(value, non_blocking=True)


def _wait(values: Iterable[Tensor]) -> None:
    for device in {value.device for value in values if value.is_cuda}:
        torch.cuda.current_stream(device).synchronize()


def _by_device(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    ordered = sorted(tensors.items(), key=lambda item: str(item[1].device))
    for _, items in groupby(ordered, key=lambda item: item[1].device):
        yield dict(items)
