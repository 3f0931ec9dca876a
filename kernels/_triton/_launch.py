"""How kernels are launched: settings per GPU family, and the one place that calls a kernel."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

# Elements of the widest load (16 bytes) of a 16-bit dtype; a float32 tensor takes two loads for as many.
VECTOR = 8


@dataclass(frozen=True)
class Family:
    """Settings of one GPU family, from its compute capability on.

    Attributes:
        capability: the lowest one that it holds for.
        vectors:    16-byte loads that a thread should have in flight in an element-wise kernel.
        num_warps:  of element-wise kernels and histograms.
        programs:   per multiprocessor, of kernels that loop over the tensor.
        why:        the reason for ``vectors``, which follows from bandwidth times latency.
    """

    capability: tuple[int, int]
    vectors: int
    num_warps: int
    programs: int
    why: str


FAMILIES = (
    Family((10, 0), 8, 4, 8, "8 TB/s at 0.8 us keeps 43 KB per multiprocessor in flight"),
    Family((9, 0), 4, 4, 8, "3.4 to 4.8 TB/s at 0.7 us keeps 18 to 25 KB per multiprocessor in flight"),
    Family((0, 0), 2, 4, 8, "2 TB/s at 0.6 us keeps 11 KB per multiprocessor in flight"),
)


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a device; the interpreter, on the CPU, takes that of Hopper."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def family(device: torch.device) -> Family:
    """Return the settings for a device."""
    found = capability(device)
    return next(f for f in FAMILIES if found >= f.capability)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Return the multiprocessors of a device; one for the interpreter, which runs programs in turn."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def launch(kernel: triton.JITFunction, grid: tuple[int, ...], like: Tensor, *args, num_warps: int, **constants) -> None:
    """Run ``kernel`` on the device of ``like``. Fused multiply-adds are off: they would change bits."""
    with torch.cuda.device_of(like):
        kernel[grid](*args, **constants, num_warps=num_warps, enable_fp_fusion=False)


def spans(numel: int, block: int) -> Iterator[tuple[int, int, bool]]:
    """Yield ``(first block, blocks, masked)``: the whole blocks without a mask, then the elements that are left.

    A mask that ends inside a vector would make every load of the launch a narrow one.
    """
    whole = numel // block
    if whole:
        yield 0, whole, False
    if numel % block:
        yield whole, 1, True


def elementwise_block(like: Tensor, streams: int, held: int) -> tuple[int, int]:
    """Return ``(block, num_warps)`` of an element-wise kernel.

    Args:
        like:    a tensor on the device.
        streams: tensors that are read.
        held:    float32 values per element that stay in registers; 128 registers are theirs.
    """
    settings = family(like.device)
    elements = VECTOR * triton.next_power_of_2(max(1, settings.vectors // streams))
    while elements > 1 and elements * held > 128:
        elements //= 2
    return elements * 32 * settings.num_warps, settings.num_warps


_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def pointer_table(tensors: Sequence[Tensor]) -> tuple[Tensor, dict[str, object]]:
    """Return a table [N, 2] of addresses and dtype numbers on the device, and the constants of ``_element.entry``.

    With it a kernel takes any number of tensors without being compiled for that number.
    """
    rows = [[t.data_ptr(), _CODES[t.dtype]] for t in tensors]
    dtypes = {t.dtype for t in tensors}
    constants = {
        "DTYPE": _TYPES[dtypes.pop()] if len(dtypes) == 1 else None,
        "ALIGN": 16 if all(t.data_ptr() % 16 == 0 for t in tensors) else 2,
    }
    return to_device(rows, tensors[0]), constants


def to_device(rows: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """Return a small int64 table on the device of ``like``, without waiting for the device."""
    return torch.tensor(rows, dtype=torch.int64).to(like.device, non_blocking=True)
