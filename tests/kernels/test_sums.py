"""Exact sums: rounded once, whatever the order and the cut."""

from __future__ import annotations

import contextlib
import math
import sys
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastmerge import kernels
from fastmerge.kernels import _sums

LARGEST, LEAST = sys.float_info.max, 5e-324
# Of every size, with many that cancel, are subnormal, near the ends, or halves of a last bit of one another.
SPECIAL = [0.0, -0.0, LEAST, -LEAST, LARGEST, -LARGEST, 1.0, -1.0, 2.0**53, 2.0**-53, 2.0**-1022, 1e292, -1e292]
finite = st.floats(allow_nan=False, allow_infinity=False)
powers = st.builds(math.ldexp, st.sampled_from([1.0, -1.0, 3.0]), st.integers(-1074, 1000))
numbers = st.lists(finite | powers | st.sampled_from(SPECIAL), min_size=1, max_size=40)


def rounded(exact: Fraction) -> float:
    """The nearest float64, by integers alone."""
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def same(found: float, expected: float) -> bool:
    return found == expected or (math.isnan(found) and math.isnan(expected))


def total(values: list[float]) -> float:
    [found] = kernels.total(torch.tensor(values, dtype=torch.float64).view(-1, 1))
    return found


@settings(max_examples=300, deadline=None)
@given(numbers)
def test_finite_numbers(values):
    expected = rounded(sum(map(Fraction, values)))
    for found in (total(values), _sums._exact(values)):
        assert found == expected and (found != 0 or math.copysign(1, found) == 1)
    with contextlib.suppress(OverflowError):
        assert total(values) == math.fsum(values)


@settings(max_examples=100, deadline=None)
@given(numbers, st.randoms(use_true_random=False))
def test_the_order_does_not_matter(values, random):
    values = values + [-value for value in values[: len(values) // 2]]
    shuffled = random.sample(values, len(values))
    assert total(shuffled) == total(values)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats() | st.sampled_from([math.inf, -math.inf, math.nan]), min_size=1, max_size=6))
@example([math.inf, LARGEST, LARGEST])
@example([LARGEST, LARGEST, -math.inf, math.inf])
def test_infinities_and_nans(values):
    # fsum gives up where finite numbers beside an infinity overflow.
    special = [value for value in values if not math.isfinite(value)]
    try:
        expected = sum(special) if special else math.fsum(values)
    except OverflowError:
        expected = rounded(sum(map(Fraction, values)))
    assert same(total(values), expected) and same(_sums._exact(values), expected)


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (7, 3), (1000, 21)])
def test_columns(shape, generator):
    table = torch.randn(shape, generator=generator, dtype=torch.float64).exp()
    assert kernels.total(table) == [math.fsum(column) for column in table.t().tolist()]
    # Not contiguous.
    assert kernels.total(table.t()) == [math.fsum(row) for row in table.tolist()]


def test_arguments():
    with pytest.raises(ValueError, match=r"partials is torch\.float32 \(2, 2\); expected a float64 table"):
        kernels.total(torch.zeros(2, 2))
