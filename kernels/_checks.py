"""Argument checks of the operations. Each raises ValueError naming the argument, its value and what was expected."""

from __future__ import annotations

import ctypes
import functools
import math
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from fastmerge.dtypes import DType, bfloat16, float16
from fastmerge.dtypes import float32 as _float32

from .strip import Strip

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Job = TypeVar("Job", bound=Sequence[Any])
Checked = TypeVar("Checked")

_FLOAT32_MAX = 3.4028234663852886e38
# Their places are the numbers of csrc/fastmerge_math.h.
FLOATS = (_float32, bfloat16, float16)

# Reductions are summed over this grid of elements, whatever the chunking, thread count or backend.
GRID = 16384
# Inside a chunk of the grid, element i is added to lane i % LANES.
LANES = 256


class _Codes(dict[Any, int | None]):
    def __missing__(self, dtype: torch.dtype | DType) -> int | None:
        names = [str(known) for known in FLOATS]
        name = str(dtype).removeprefix("torch.")
        self[dtype] = names.index(name) if name in names else None
        return self[dtype]


# The number by which compiled backends know a type of elements, torch's or this package's, or None.
CODES = _Codes()


def is_dtype(dtype: torch.dtype | DType, known: DType) -> bool:
    """Return whether a type, torch's or this package's, is the one that is known here."""
    return dtype is known or str(dtype).removeprefix("torch.") == known.name


def check_table(name: str, table: Tensor, dtype: DType, shape: tuple[int, ...]) -> None:
    """Refuse a table for results that has another type or shape, or gaps."""
    if not is_dtype(table.dtype, dtype) or tuple(table.shape) != shape or not table.is_contiguous():
        raise ValueError(f"{name} is {table.dtype} {tuple(table.shape)}; expected contiguous {dtype} {shape}")


@functools.cache
def _torch() -> Any:
    import torch

    return torch


@functools.cache
def _fake_tensor() -> type:
    from torch._subclasses.fake_tensor import FakeTensor

    return FakeTensor


def why_not_plain(tensor: Tensor) -> str | None:
    """Return why the elements of ``tensor`` are not what lies in memory at its address, or None where they are."""
    kind = type(tensor)
    if kind is Strip:
        return None
    torch = _torch()
    if kind is not torch.Tensor and issubclass(kind, _fake_tensor()):  # a dry run; torch itself refuses its address
        return None
    if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        remedy = (
            "give .to_local() of each, or .full_tensor()" if kind.__name__ == "DTensor" else "make it a plain tensor"
        )
        return f"is a {kind.__name__}, which has no elements in memory of its own; {remedy}"
    if tensor.is_nested:
        return "is a nested tensor; expected one shape"
    if tensor.layout is not torch.strided:
        return f"has layout {tensor.layout}; call .to_dense() first"
    if tensor.is_meta:
        return "is on the device meta, without elements; load it first"
    if tensor.is_neg() or tensor._is_zerotensor():
        return (
            "is a view that torch computes as it is read (negated, or all zeros); call .resolve_neg() or .clone() first"
        )
    return None


def check_float(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is not contiguous float32, bfloat16 or float16 in memory of its own."""
    if why := why_not_plain(tensor):
        raise ValueError(f"{name} {why}")
    if CODES[tensor.dtype] is None:
        raise ValueError(f"{name} has dtype {tensor.dtype}; expected float32, bfloat16 or float16")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} is not contiguous (strides {tuple(tensor.stride())}); call .contiguous() first")


@functools.cache
def _is_plain(kind: Any) -> bool:
    return kind.__torch_dispatch__ is _torch().Tensor.__torch_dispatch__


def check_group(tensors: Sequence[Tensor], base: Tensor | None, out: Tensor | None = None) -> torch.device:
    """Refuse tensors that differ in shape or device, or that no operation can read; returns their device."""
    if not tensors:
        raise ValueError("tensors is empty; expected at least one tensor")
    like = tensors[0] if out is None else out
    group = [*tensors]
    if base is not None:
        group.append(base)
    if out is not None:
        group.append(out)
    # What is usual is seen at once, since merges of thousands of tiny tensors ask again and again: a tensor that has
    # all this is plain. Names are made where something is wrong.
    known = None
    try:
        shape, device = like.shape, like.device
        for tensor in group:
            kind = type(tensor)
            if tensor.shape != shape or tensor.device != device or CODES[tensor.dtype] is None:
                break
            if kind is Strip:
                continue
            if kind is not known and not _is_plain(kind):
                break
            known = kind
            if not tensor.is_contiguous() or not tensor.data_ptr() or tensor.is_neg():
                break
        else:
            return device
    except RuntimeError:  # torch asks for more than some of its layouts have
        pass
    _check_each(tensors, base, out)
    return like.device


def _check_each(tensors: Sequence[Tensor], base: Tensor | None, out: Tensor | None) -> None:
    """Do what ``check_group`` does, for tensors of any kind."""
    like, like_name = (tensors[0], "tensors[0]") if out is None else (out, "out")
    named = [(f"tensors[{i}]", t) for i, t in enumerate(tensors)]
    named += [("base", base)] if base is not None else []
    named += [("out", out)] if out is not None else []
    for name, tensor in named:
        check_float(name, tensor)
    for name, tensor in named:
        if tensor.shape != like.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, {like_name} has {tuple(like.shape)}")
        if tensor.device != like.device:
            raise ValueError(f"{name} is on {tensor.device}, {like_name} is on {like.device}")


def checked_jobs(jobs: Sequence[Job], check: Callable[[Job], tuple[Checked, torch.device]]) -> list[Checked]:
    """Return what ``check`` makes of each job, beside its device; a ValueError that it raises names the job.

    Jobs on several devices are refused: they would need several launches.
    """
    checked = []
    first = None
    for i, job in enumerate(jobs):
        try:
            made, device = check(job)
        except ValueError as error:
            raise ValueError(f"jobs[{i}]: {error}") from None
        checked.append(made)
        if first is None:
            first = device
        elif device != first:
            raise ValueError(f"jobs[{i}] is on {device}, jobs[0] is on {first}")
    return checked


def device_of(argument: Tensor | Sequence[Any]) -> torch.device:
    """Return the device of a tensor, or of the first one in a sequence or in the first of nested sequences."""
    while not hasattr(argument, "device"):
        argument = argument[0]
    return argument.device


def checked_scalars(name: str, values: Sequence[float], count: int) -> list[float]:
    """Return scalars rounded to float32; refuses a list of the wrong length, or with a value that is not finite then.

    Args:
        name:   of the argument.
        values: dimensionless.
        count:  one per tensor.
    """
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} values; expected {count}, one per tensor")
    try:
        rounded = floats32(values)
    except OverflowError:  # an integer beyond float64
        rounded = [math.inf]
    # In float64 no sum of float32 overflows.
    if not math.isfinite(sum(rounded)):
        for i, value in enumerate(values):
            if not -_FLOAT32_MAX <= value <= _FLOAT32_MAX:
                raise ValueError(f"{name}[{i}] is {value}; expected a finite float32 value")
    return rounded


def check_offset(offset: int) -> None:
    """Refuse an offset off the reduction grid: partial sums would not add up to those of the whole tensor."""
    if offset < 0 or offset % GRID:
        raise ValueError(f"offset is {offset}; expected a multiple of {GRID}")


def float32(value: float) -> float:
    """Round a scalar to the nearest float32 (ties to even, infinity beyond), as every backend has it."""
    return ctypes.c_float(value).value


def floats32(values: Sequence[float]) -> list[float]:
    """Round scalars as ``float32`` does."""
    return array("f", values).tolist()


def grid_chunks(numel: int) -> int:
    """Return the number of chunks of the reduction grid that cover ``numel`` elements."""
    return -(-numel // GRID)


def lane_sums(values: Tensor) -> Tensor:
    """Sum float64 ``values`` [n] over the reduction grid: returns [ceil(n / GRID)].

    The order is fixed: 256 lanes take the elements of a chunk in turn, then lanes are added in a
    binary tree (lane i with lane i + 128, then i + 64, ...). A missing element counts as +0.
    """
    import torch

    chunks = grid_chunks(values.numel())
    padded = torch.zeros(chunks * GRID, dtype=torch.float64, device=values.device)
    padded[: values.numel()] = values
    rows = padded.view(chunks, GRID // LANES, LANES)
    lanes = torch.zeros(chunks, LANES, dtype=torch.float64, device=values.device)
    for row in range(GRID // LANES):
        lanes = lanes + rows[:, row]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]
