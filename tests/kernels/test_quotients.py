"""Divisions by a table of quotients have the bits of divisions, for every numerator: exhaustively and at random."""

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fastmerge.kernels._checks import floats32
from fastmerge.kernels._quotients import elected_quotients

ROOT = Path(__file__).resolve().parents[2]
# Sums of weights, one mantissa of ones, both ends of the float32 numbers, subnormals and infinity.
DIVISORS = [3.0, 0.3, -0.7, 1.9999999, 1.0, 7e-20, 1e30, 1e-42, -1.4e-45, 3.4028234663852886e38, float("inf")]
ONE = 0x3F800000


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    library = tmp_path_factory.mktemp("quotients") / "quotients.so"
    flags = ["-std=c++17", "-O2", "-ftree-vectorize", "-ffp-contract=off", "-shared", "-fPIC", f"-I{ROOT / 'csrc'}"]
    subprocess.run([compiler, *flags, ROOT / "tests/support/quotients.cpp", "-o", library], check=True)
    found = ctypes.CDLL(str(library))
    found.wrong_numerators.argtypes = [ctypes.c_float, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_long]
    found.wrong_pairs.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]
    found.table.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    found.wrong_numerators.restype = found.wrong_pairs.restype = ctypes.c_long
    return found


@pytest.mark.parametrize("divisor", DIVISORS[:3])
def test_every_mantissa(compiled, divisor):
    assert compiled.wrong_numerators(divisor, ONE, 1, 1 << 23) == 0


@pytest.mark.parametrize("divisor", DIVISORS)
def test_numerators_of_every_kind(compiled, divisor):
    """Zeros, subnormals, infinities and NaNs of both signs among them, and quotients that overflow or vanish."""
    step = 4099
    assert compiled.wrong_numerators(divisor, 0, step, 2**32 // step) == 0
    for first in (0, 0x7F7FFF00, 0x80000000, 0xFF7FFF00):
        assert compiled.wrong_numerators(divisor, first, 1, 512) == 0


def test_random_pairs(compiled):
    """Quotients of half of the pairs are subnormal, where a tie between two of them is exact."""
    rng = np.random.default_rng(5)
    numerators, divisors = rng.integers(0, 2**32, (2, 1 << 20), dtype=np.uint32)
    numerators[::2] &= 0x807FFFFF
    divisors[::4] = divisors[::4] & 0x80FFFFFF | 0x40000000
    for pair in ((numerators, divisors), (divisors, numerators)):
        assert compiled.wrong_pairs(*(values.ctypes.data for values in pair), len(numerators)) == 0


def test_ties_of_subnormals(compiled):
    """Odd numerators halved, or divided by other powers of two, lie between two numbers."""
    numerators = np.arange(1, 4097, dtype=np.uint32)
    for divisor in (2.0, 4.0, -8.0):
        divisors = np.full_like(numerators, np.float32(divisor).view(np.uint32))
        assert compiled.wrong_pairs(numerators.ctypes.data, divisors.ctypes.data, len(numerators)) == 0


def test_both_parts_are_needed(compiled):
    table, weights = np.zeros((2, 2)), np.array([0.7], np.float32)
    compiled.table(table.ctypes.data, weights.ctypes.data, 1)
    numerators = np.arange(ONE, ONE + (1 << 23), 31, dtype=np.uint32).view(np.float32)
    high, low = table[1]
    exact = numerators.astype(np.float64)
    assert (numerators / weights == (exact * high + exact * low).astype(np.float32)).all()
    assert not (numerators / weights == (exact * high).astype(np.float32)).all()


def test_python_makes_the_same_table(compiled):
    weights = [0.3, -0.7, 1e-42, 0.4, 3e38, 3.3e38, -1e-9, 1.0, 0.0, -1.0]
    for count in range(1, 5):
        for chosen in itertools.permutations(weights, count) if count < 3 else itertools.combinations(weights, count):
            rounded = np.array(chosen, np.float32)
            table = np.zeros((1 << count, 2))
            compiled.table(table.ctypes.data, rounded.ctypes.data, count)
            assert np.array(elected_quotients(tuple(floats32(chosen)))).tobytes() == table.tobytes()
