"""Recipes of tiny checkpoints, and the command run in this process."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from click.testing import CliRunner, Result

from fastmerge.cli import main


def write_recipe(path: Path, models: Path, **changes) -> Path:
    """Write a TIES recipe of the checkpoints in ``models``; ``changes`` replaces top-level keys."""
    recipe = {
        "merge_method": "ties",
        "base_model": str(models / "base"),
        "models": [
            {"model": str(models / name), "parameters": {"weight": 1.0, "density": 0.5}}
            for name in ("one", "two", "three")
        ],
        "dtype": "bfloat16",
    }
    path.write_text(yaml.safe_dump(recipe | changes))
    return path


def call(*arguments: object) -> Result:
    """Run ``fastmerge`` in this process; an unexpected exception is raised."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def call_json(*arguments: object):
    """Run ``fastmerge ... --json`` and return what it printed."""
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)
