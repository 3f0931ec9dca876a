"""What the host does per tensor: the benchmark of it, on the emulator of the tests."""

from __future__ import annotations

import ctypes

import pytest

from benchmarks import calls


@pytest.mark.parametrize("operation", calls.PACKED)
def test_its_parts_are_timed_after_the_bits_were_compared(device, emulated, operation):
    if device.type != "cpu":
        pytest.skip("a GPU takes no part in it")
    let_run = ctypes.CDLL(emulated.__file__).fastmerge_emulated_kernels
    times = calls.measure(operation, calls.make_jobs(3)[operation], emulated, 1, let_run)
    assert list(times) == list(calls.PARTS) and all(time > 0 for time in times.values())
