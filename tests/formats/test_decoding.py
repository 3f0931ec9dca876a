"""Values of quantized tensors are, bit for bit, those that the library gives which defines the format."""

from __future__ import annotations

import pytest
import torch
from quantized_files import NAMES, decode, load_case, write_case

from fastmerge.checkpoint import open_checkpoint
from fastmerge.checkpoint.quantized import decoded


@pytest.mark.parametrize("name", NAMES)
def test_values_of_the_library(tmp_path, name):
    stored, expected, config = load_case(name)
    checkpoint = decoded(open_checkpoint(write_case(tmp_path, stored, config)))
    assert checkpoint.tensors.keys() == expected.keys()
    for key, value in expected.items():
        entry = checkpoint.tensors[key]
        assert (entry.dtype.torch, entry.shape) == (value.dtype, tuple(value.shape))
        assert entry.coded is not None and entry.coded.format in checkpoint.quantized
        rows = value.reshape(-1, value.shape[-1])
        assert torch.equal(decode(entry), rows)
        # Any rows can be decoded alone, wherever blocks, words and groups begin.
        for first, last in ((0, 1), (1, 4), (5, min(len(rows), 40)), (len(rows) - 3, len(rows))):
            assert torch.equal(decode(entry, first, last), rows[first:last])
