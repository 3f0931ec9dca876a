"""A base and three fine-tunes on disk, and a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import write_recipe
from tiny_models import make_tensors, save_model


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """Folder with the checkpoints base, one, two, three."""
    folder = tmp_path_factory.mktemp("models")
    base = make_tensors(seed=0)
    save_model(folder / "base", base)
    for seed, name in enumerate(("one", "two", "three"), start=1):
        save_model(folder / name, make_tensors(seed=seed, base=base), shards=2)
    return folder


@pytest.fixture(scope="session")
def ties(models) -> Path:
    """A recipe of the three fine-tunes."""
    return write_recipe(models / "ties.yml", models)
