"""Tests of the CUDA backend run on a GPU, or on the CPU: the same sources, compiled for an emulator of the GPU."""

from __future__ import annotations

import random
from pathlib import Path
from types import ModuleType

import cuda_emulation
import pytest
import torch

from fastmerge.kernels import _cuda, _registry


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that a GPU runs where there is one, so that ``-m gpu`` takes them."""
    for item in items:
        if item.path.parent == Path(__file__).parent and "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The extension compiled for the emulator, once per session."""
    return cuda_emulation.load(cuda_emulation.build(tmp_path_factory.mktemp("cuda"), kernels=cuda_emulation.FIND_RACES))


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where the kernels run: a GPU where the backend can, else the emulator on the CPU."""
    if _cuda.why_unavailable() is None and torch.cuda.is_available():
        return torch.device("cuda")
    module = request.getfixturevalue("emulated")
    seed = random.randrange(1, 2**31)
    print(f"order of threads {seed}")
    cuda_emulation.order(module.__file__, seed)
    monkeypatch.setattr(_cuda, "_load", lambda: (module, None))
    monkeypatch.setitem(_registry.PREFERENCE, "cpu", ("cuda", "reference"))
    for operation in _registry.OPERATIONS.values():
        monkeypatch.setattr(operation, "_chosen", {})
    return torch.device("cpu")
