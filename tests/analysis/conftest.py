"""A base and three models with known differences, on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from deltas import make_delta
from tiny_models import make_tensors, save_model

NAMES = ("one", "two", "other")


@pytest.fixture(scope="session")
def family(tmp_path_factory) -> Path:
    """Folder of base, one, two (close to one), other: float32 and bfloat16, several chunks per embedding."""
    folder, generator = tmp_path_factory.mktemp("family"), torch.Generator().manual_seed(7)
    base = make_tensors(0, dtype=torch.float32, vocab=4100, layers=3)
    common = {n: make_delta("low_rank_noise", *t.shape, generator) for n, t in base.items() if t.dim() == 2}
    save_model(folder / "base", base)
    for name, share in zip(NAMES, (1.0, 1.0, 0.0), strict=True):
        tuned = {}
        for tensor_name, tensor in base.items():
            delta = 1e-3 * torch.randn(tensor.shape, generator=generator)
            if tensor_name in common:
                delta += share * common[tensor_name]
            # What a model leaves alone shows in densities.
            delta *= torch.rand(tensor.shape, generator=generator) < 0.7
            tuned[tensor_name] = tensor + delta
        if name == "other":
            tuned = {n: t.bfloat16() for n, t in tuned.items()}
        save_model(folder / name, tuned, shards=1 if name == "one" else 2)
    return folder
