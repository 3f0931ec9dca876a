"""A base and three fine-tunes on disk, and a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import write_recipe
from tiny_models import save_family


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """Folder with the checkpoints base, one, two, three."""
    return save_family(tmp_path_factory.mktemp("models"), shards=2)


@pytest.fixture(scope="session")
def ties(models) -> Path:
    """A recipe of the three fine-tunes."""
    return write_recipe(models / "ties.yml", models)
