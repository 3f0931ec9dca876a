"""The compiled CUDA extension ``fastmerge._cuda``: found on first use, and the reason when it cannot run.

Not yet measured on a GPU. Every kernel returns the bits of the reference in the file of its operation.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from .. import _native


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    try:
        from fastmerge import _cuda
    except ImportError as error:
        return None, f"the extension fastmerge._cuda is missing ({error}); install fastmerge where nvcc is found"
    return _cuda, _cuda.why_unavailable() or None


def extension() -> ModuleType:
    """Return ``fastmerge._cuda``; call only after ``why_unavailable()`` returned None."""
    module, why = _load()
    if module is None:
        raise RuntimeError(why)
    return module


def why_unavailable() -> str | None:
    """Return the reason why the CUDA backend cannot run, or None."""
    return _load()[1]


def place(tensor: Tensor) -> tuple[int, int]:
    """Return ``(device index, stream)`` that an operation on ``tensor`` runs on."""
    if tensor.device.type != "cuda":  # the emulator of the tests
        return 0, 0
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream


def weighted_sum_many(jobs: Sequence[tuple[Tensor, Sequence[Tensor], Sequence[float]]]) -> None:
    """See ``kernels.weighted_sum_many``."""
    tuples = [(_native.one(out), _native.group(tensors, None), list(weights)) for out, tensors, weights in jobs]
    extension().weighted_sum(tuples, place(jobs[0][0]))


def sparse_merge_many(jobs: Sequence[tuple]) -> None:
    """See ``kernels.sparse_merge_many``; the last of a job's arguments is the constant divisor of vote none."""
    tuples = []
    for out, base, tensors, factors, weights, keeps, vote, divide, scale, offset, divisor in jobs:
        rules = [keep.integers() for keep in keeps]
        arrays = _native.one(out), _native.group(tensors, base)
        tuples.append((*arrays, factors, weights, rules, (vote, divide), (scale, divisor), offset))
    extension().sparse_merge(tuples, place(jobs[0][0]))
