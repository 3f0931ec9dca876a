"""Checksums of inputs: of two that are the same stored tensor each has its own, whichever is read first."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fastmerge.dtypes import bfloat16
from fastmerge.engine.checksums import checksum_of, digests_of
from fastmerge.engine.watching import Watch
from fastmerge.plan.types import InputTensor
from fastmerge.steps.inputs import Inputs


@pytest.mark.parametrize("by_row_first", [False, True])
def test_one_stored_tensor_read_in_two_ways(by_row_first):
    """As a base is read by cells, and by rows where an adapter of it is folded in."""
    rows, columns = 6, 24
    data = torch.randn(rows, columns).to(torch.bfloat16).view(torch.uint8).numpy().data.cast("B")
    base = InputTensor(0, "weight", "/model.safetensors", 8, len(data), bfloat16, (rows, columns))
    adapted = replace(base, model=1)
    watch = Watch(SimpleNamespace(inputs=Inputs(base, (adapted,))), finite=False)
    looks = [lambda: watch.look(base, bfloat16, 0, data), lambda: watch.look(adapted, bfloat16, 0, data, columns)]
    for look in reversed(looks) if by_row_first else looks:
        look()
    by_rows = checksum_of(memoryview(digests_of(data, 2 * columns)), 1)
    assert watch.checksums() == [checksum_of(data, 2), by_rows]
