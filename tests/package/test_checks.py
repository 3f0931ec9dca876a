"""What pre-commit runs is what CI runs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_every_hook_is_a_check_of_ci():
    if not (ROOT / ".ci" / "run").exists():
        pytest.skip("needs the sources")
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    ci = (ROOT / ".ci" / "run").read_text()
    tools = [" ".join(shlex.split(hook["entry"])[:2]) for hook in local["hooks"]]
    assert tools == ["ruff check", "ruff format", "clang-format -i", ".ci/types"]
    for tool in tools:
        assert tool.removesuffix(" -i") in ci
