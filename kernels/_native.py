"""The compiled CPU extension ``fastmerge._C``: found on first use, and the reason when it is missing."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

# The numbers of csrc/fastmerge_math.h.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    try:
        from fastmerge import _C
    except ImportError as error:
        return None, (
            f"the CPU kernels are missing ({error}), so PyTorch computes alone, many times slower; install a C++17 "
            "compiler with Python's headers (Debian: g++ python3-dev), then install fastmerge again"
        )
    return _C, None


def cpu_extension() -> ModuleType:
    """Return ``fastmerge._C``; call only after ``why_no_cpu_extension()`` returned None."""
    module, why = _load()
    if module is None:
        raise RuntimeError(why)
    return module


def why_no_cpu_extension() -> str | None:
    """Return the reason why the CPU extension cannot be used, or None."""
    return _load()[1]


def one(tensor: Tensor) -> tuple[int, int]:
    """Return ``(address, dtype number)`` of a tensor."""
    return tensor.data_ptr(), DTYPE_CODES[tensor.dtype]


def group(tensors: Sequence[Tensor], base: Tensor | None) -> tuple[list[int], list[int], int, int, int]:
    """Return ``(addresses, dtype numbers, base address, base dtype number, elements)``; address 0 is no base."""
    base_address, base_code = (0, 0) if base is None else one(base)
    return (
        [t.data_ptr() for t in tensors],
        [DTYPE_CODES[t.dtype] for t in tensors],
        base_address,
        base_code,
        tensors[0].numel(),
    )
