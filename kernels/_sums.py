"""Exact sums of the partial sums that the reductions return."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from fastmerge.dtypes import float64

from . import _cuda, _native
from ._download import download, download_all
from .strip import empty, on_host

if TYPE_CHECKING:
    from torch import Tensor


def total(partials: Tensor | np.ndarray) -> list[float]:
    """Sum float64 ``partials`` [chunks, columns] over the chunks, exactly, rounded once: returns [columns].

    The sum is correctly rounded, ties to even, so it does not depend on the order of the chunks, on how they were
    split over devices, or on the backend. It is infinite only where the exact sum lies beyond float64; a zero sum is
    +0. NaN and infinity propagate.
    """
    _check(partials)
    if not isinstance(partials, np.ndarray) and (sums := device_sums([partials])) is not None:
        return on_host(sums).tolist()
    return _host_total(on_host(partials))


def start_totals(tables: Sequence[Tensor]) -> Callable[[], list[np.ndarray]]:
    """Begin what ``total`` returns for tables of one device, and do not wait for it; the function returned does.

    On a GPU the sums are made there, in one launch, and come in one download; where its kernels cannot run the tables
    come, in one download, too.
    """
    sums = device_sums(tables)
    if sums is None:
        come = download_all(tables)
        return lambda: [np.array(_host_total(table)) for table in come()]
    wait, ends = download(sums), np.cumsum([table.shape[1] for table in tables])[:-1]
    return lambda: np.split(on_host(wait()), ends)


def device_sums(tables: Sequence[Tensor]) -> Tensor | None:
    """Return what ``total`` returns for tables of one GPU, as one float64 tensor there; None where CUDA cannot run.

    ValueError for what is not a float64 table.
    """
    like = tables[0]
    if not _cuda.serves(like):
        return None
    for table in tables:
        _check(table)
    contiguous = [table if table.is_contiguous() else table.contiguous() for table in tables]
    sums = empty(like, float64, sum(table.shape[1] for table in tables))
    entries = [(table.data_ptr(), *table.shape) for table in contiguous]
    _cuda.extension().exact_sums(sums.data_ptr(), entries, _cuda.stream(like))
    return sums


def _check(table: Tensor | np.ndarray) -> None:
    if str(table.dtype).removeprefix("torch.") != "float64" or len(table.shape) != 2:
        raise ValueError(f"partials is {table.dtype} {tuple(table.shape)}; expected a float64 table")


def _host_total(table: np.ndarray) -> list[float]:
    if _native.why_no_cpu_extension():
        return [_exact(column) for column in table.T.tolist()]
    table = np.ascontiguousarray(table)
    return _native.cpu_extension().exact_sums(table.ctypes.data, *table.shape)


def _exact(values: list[float]) -> float:
    """The same in Python: Shewchuk's sum, and integers where that leaves float64 on its way."""
    try:
        return math.fsum(values)
    except ValueError:  # opposite infinities
        return math.nan
    except OverflowError:
        # math.fsum may overflow before it comes to an infinity.
        if infinite := [value for value in values if not math.isfinite(value)]:
            return sum(infinite)
        exact = sum(map(Fraction, values))
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf
