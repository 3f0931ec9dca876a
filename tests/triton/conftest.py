"""Tests of the Triton backend run on a CUDA device, or on the CPU through Triton's interpreter (TRITON_INTERPRET=1).

The variable must be set before Triton is imported, so ``test_interpreter.py`` runs this folder in a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmerge.kernels import _registry, _triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Where the kernels run; skips where they cannot."""
    why = _triton.why_unavailable()
    if why is not None:
        pytest.skip(f"{why}; test_interpreter.py runs this test in Triton's interpreter")
    if not INTERPRETED:
        yield torch.device("cuda")
        return
    monkeypatch.setitem(_registry.PREFERENCE, "cpu", ("triton", "reference"))
    # The interpreter computes with NumPy, which warns of the NaN that these tests ask for.
    with np.errstate(all="ignore"):
        yield torch.device("cpu")


@pytest.fixture
def sizes() -> list[int]:
    """Numbers of elements: empty, around blocks and chunks of the grid, and on a GPU larger ones."""
    small = [0, 1, 7 * 129, 1023, 1024, 4096, 5001]
    return small if INTERPRETED else [*small, 16384, 3 * 16384 + 5, 2**20, 2**22 + 77]


@pytest.fixture
def make(generator: torch.Generator):
    """A function that returns a base and its fine-tuned tensors, with NaN, infinities and equal magnitudes."""

    def tensors(numel: int, dtypes: list[torch.dtype]) -> tuple[Tensor, list[Tensor]]:
        """The first dtype is that of the base."""

        def normal(size: float) -> Tensor:
            return size * torch.randn(numel, generator=generator)

        base = normal(0.02)
        models = []
        for dtype in dtypes[1:]:
            model = torch.where(torch.rand(numel, generator=generator) < 0.2, base, base + normal(5e-4))
            draw = torch.rand(numel, generator=generator)
            model = torch.where(draw < 0.004, torch.nan, torch.where(draw < 0.008, torch.inf, model))
            # Results in the range of subnormal numbers of the 16-bit dtypes.
            models.append(torch.where(draw > 0.99, 1e-40 * draw, model).to(dtype))
        return base.to(dtypes[0]), models

    return tensors


def _same_bits(result: Tensor, expected: Tensor) -> None:
    """Assert that two tensors have the same bits, up to the payload of a NaN."""
    result = result.cpu()
    assert result.dtype == expected.dtype
    assert torch.equal(result.isnan(), expected.isnan())
    ints = {2: torch.int16, 4: torch.int32, 8: torch.int64}[expected.element_size()]
    assert torch.equal(result.nan_to_num(0.0).view(ints), expected.nan_to_num(0.0).view(ints))


@pytest.fixture
def same_bits():
    """Assert that two tensors have the same bits, up to the payload of a NaN."""
    return _same_bits
