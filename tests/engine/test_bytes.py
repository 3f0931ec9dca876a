"""What is looked at of bytes as they move: checksums, and numbers that are not finite. Both ways give the same."""

from __future__ import annotations

import random

import numpy as np
import pytest
import xxhash

from fastmerge.dtypes import bfloat16, float16, float32, int32
from fastmerge.engine import checksums, finite
from fastmerge.engine.checksums import BLOCK, Checksum, checksum_of, digests_of
from fastmerge.engine.finite import all_finite
from fastmerge.kernels import cpu_extension, why_no_cpu_extension

COMPILED = ["python"] if why_no_cpu_extension() else ["python", *cpu_extension().available_isas()]


@pytest.fixture(params=COMPILED)
def way(request, monkeypatch):
    """Compute by the extension with one instruction set, or without it."""
    if request.param != "python":
        cpu_extension().set_isa(request.param)
        yield request.param
        cpu_extension().set_isa("auto")
        return
    for module in (checksums, finite):
        monkeypatch.setattr(module, "why_no_cpu_extension", lambda: "a test")
    yield request.param


@pytest.mark.parametrize("step", [7, 64, 2 * BLOCK])
def test_digests_are_those_of_xxhash(way, step):
    data = memoryview(random.Random(0).randbytes(3 * 2 * BLOCK + 5))
    for size in (0, 1, 6, 7, 8, 63, 64, 65, 240, 241, 1024, 2 * BLOCK, 2 * BLOCK + 1, len(data)):
        if size > 5000 > step:
            continue
        for start in (0, 1):
            part = data[start : start + size]
            cells = [part[i : i + step] for i in range(0, max(len(part), 1), step)]
            assert digests_of(part, step) == b"".join(map(xxhash.xxh3_64_digest, cells))


def test_parts_in_any_order_give_the_checksum_of_the_whole(way):
    data = memoryview(random.Random(1).randbytes(2 * (5 * BLOCK + 3)))
    parts = list(range(0, len(data), 2 * 2 * BLOCK))
    checksum = Checksum(len(data) // 2, 2)
    for start in reversed(parts):
        checksum.add(start, data[start : start + 2 * 2 * BLOCK])
    assert checksum.hex() == checksum_of(data, 2) != checksum_of(data[2:], 2)
    assert checksum_of(data[:10], 2) == xxhash.xxh3_64_hexdigest(data[:10])


@pytest.mark.parametrize(
    "dtype, kind, strange, largest",
    [
        (float32, "<u4", (0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF), (0x7F7FFFFF, 0xFF7FFFFF)),
        (bfloat16, "<u2", (0x7F80, 0xFF80, 0x7F81, 0xFFFF), (0x7F7F, 0xFF7F)),
        (float16, "<u2", (0x7C00, 0xFC00, 0x7C01, 0xFFFF), (0x7BFF, 0xFBFF)),
    ],
)
def test_any_number_that_is_not_finite_is_noticed(way, dtype, kind, strange, largest):
    for size in (1, 2, 15, 4096, 4097, 9000):
        for start in (0, 1):  # numbers may lie at odd addresses
            memory = bytearray(size * dtype.itemsize + start)
            numbers = np.frombuffer(memory, kind, size, start)
            numbers[:] = [largest[i % 2] for i in range(size)]
            data = memoryview(memory)[start:]
            assert all_finite(data, dtype)
            for place in {0, size // 2, size - 1}:
                for value in strange:
                    numbers[place], kept = value, numbers[place]
                    assert not all_finite(data, dtype)
                    numbers[place] = kept
    assert all_finite(memoryview(b""), dtype)
    assert all_finite(memoryview(b"\xff" * 8), int32)
