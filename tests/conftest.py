"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest
import torch

from fastmerge.kernels import why_no_cpu_extension

# The tensors of tests are small: torch's threads would wait for one another most of the time, at full speed.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
torch.set_num_threads(1)
# Commands fit their output to it, and to nothing in a pipe.
os.environ.pop("COLUMNS", None)

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
# For the benchmarks, whose inventory of operations the tests share. At the end: what is installed comes first.
sys.path.append(str(ROOT))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of GPU kernels, which take the fixture ``device``, so that ``-m gpu`` runs them.

    Tests of the compiled CPU kernels are skipped where there are none, those that compile with nvcc unless asked for.
    """
    missing = why_no_cpu_extension()
    for item in items:
        if missing is not None and item.get_closest_marker("compiled"):
            item.add_marker(pytest.mark.skip(reason=missing))
        if item.get_closest_marker("nvcc") and "nvcc" not in item.config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="compiles for a minute: .ci/run runs it, and -m nvcc"))
        if item.path.parent.name in ("cuda", "triton") and "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with recipes and golden files that are too large for the repository; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared test data is not beside the repository ({SHARED})")
    return SHARED


@pytest.fixture
def generator() -> torch.Generator:
    """A random generator with a fresh seed, which pytest prints when the test fails."""
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)
