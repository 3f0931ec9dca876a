"""The emulator of the GPU: faults that were planted are found, and threads run in any order."""

from __future__ import annotations

import ctypes
from pathlib import Path

import cuda_emulation
import pytest

FAULTS = ("reverse", "in_step", "last_block", "copied")
BLOCKS, THREADS = 3, 64


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    sources = [Path(__file__).parent / "planted.cu"]
    return cuda_emulation.build(folder, kernels=cuda_emulation.FIND_RACES, sources=sources)


def _run(library: Path, which: int, right: bool, seed: int) -> tuple[str, list[int]]:
    cuda_emulation.order(library, seed)
    run = ctypes.CDLL(str(library)).run_planted
    run.restype = ctypes.c_char_p
    # Copies of 16 bytes are aligned to them.
    memory = (ctypes.c_uint * (4 + BLOCKS * THREADS + 1))()
    out = (ctypes.c_uint * (1 + BLOCKS * THREADS)).from_buffer(memory, -ctypes.addressof(memory) % 16)
    return run(which, ctypes.c_bool(right), out).decode(), list(out)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(planted, fault, seed):
    which = FAULTS.index(fault)
    assert _run(planted, which, True, seed)[0] == "no error"
    assert _run(planted, which, False, seed)[0].startswith("emulator: a race: thread ")


def test_the_order_is_random(planted):
    def begun(seed: int) -> list[int]:
        message, out = _run(planted, len(FAULTS), True, seed)
        assert message == "no error"
        return out[1:]

    in_turn = list(range(BLOCKS * THREADS))
    assert begun(0) == in_turn
    assert begun(7) == begun(7) != begun(8)
    assert begun(7) != in_turn == sorted(begun(7))
