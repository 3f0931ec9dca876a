"""What follows from reductions without a visit to the host: exact sums."""

from __future__ import annotations

import math

import pytest
import torch

from fastmerge import kernels
from fastmerge.kernels import _sums

LARGEST, LEAST = 1.7976931348623157e308, 5e-324
SPECIAL = [0.0, -0.0, LEAST, -LEAST, LARGEST, -LARGEST, 1.0, -1.0, 2.0**53, 2.0**-53, 2.0**-1022, 1e292, -1e292]


def _table(generator, rows: int, columns: int, kind: str) -> torch.Tensor:
    table = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    if kind == "special":
        picked = torch.randint(0, len(SPECIAL), (rows, columns), generator=generator)
        table = torch.tensor(SPECIAL, dtype=torch.float64)[picked]
    elif kind == "any exponent":
        table *= 2.0 ** torch.randint(-1074, 1000, (rows, columns), generator=generator, dtype=torch.float64)
    elif kind == "cancelling" and rows > 1:
        table[rows // 2 : rows // 2 * 2] = -table[: rows // 2]
    return table


def _same(found: list[float], expected: list[float]) -> bool:
    # A zero must have the same sign, and a NaN only be one.
    return [math.copysign(1, x) if x == 0 else x for x in found if x == x] == [
        math.copysign(1, x) if x == 0 else x for x in expected if x == x
    ] and [x != x for x in found] == [x != x for x in expected]


@pytest.mark.parametrize("kind", ["normal", "special", "any exponent", "cancelling"])
@pytest.mark.parametrize("rows", [0, 1, 3, 128, 700])
def test_exact_sums(device, generator, rows, kind):
    table = _table(generator, rows, 3, kind)
    expected = [_sums._exact(column) for column in table.T.tolist()]
    assert _same(kernels.total(table.to(device)), expected)
    # Not contiguous.
    assert _same(kernels.total(table.to(device)[:, 1:]), expected[1:])


@pytest.mark.parametrize("values", [[math.inf], [-math.inf, 1.0], [math.inf, -math.inf], [math.nan, math.inf]], ids=str)
def test_what_is_not_finite(device, values):
    table = torch.tensor([*values, 2.0], dtype=torch.float64)[:, None]
    assert _same(kernels.total(table.to(device)), [sum(values)])


def test_tables_of_many_tensors(device, generator):
    """More than one launch takes, some of them without columns."""
    tables = [_table(generator, 1 + i % 3, int(i % 50 > 0), "normal") for i in range(1050)]
    found = kernels.start_totals([table.to(device) for table in tables])()
    assert [part.tolist() for part in found] == [kernels._sums._host_total(table.numpy()) for table in tables]


def test_what_is_no_table_is_refused(device):
    for table in (torch.zeros(3, 1), torch.zeros(3, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"partials is torch\.float.*; expected a float64 table"):
            kernels.total(table.to(device))
