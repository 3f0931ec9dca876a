"""What pre-commit runs is what CI runs, and CI ends as its parts do."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not (ROOT / ".ci" / "run").exists(), reason="needs the sources")


def test_every_hook_is_a_check_of_ci():
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    ci = (ROOT / ".ci" / "run").read_text()
    tools = [" ".join(shlex.split(hook["entry"])[:2]) for hook in local["hooks"]]
    assert tools == ["ruff check", "ruff format", "clang-format -i", ".ci/types"]
    for tool in tools:
        assert tool.removesuffix(" -i") in ci


def write_program(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)


@pytest.mark.parametrize("failing", [None, "peers", "site", ".venv/bin/fastmerge", ".venv/bin/ruff"])
def test_ci_ends_as_its_parts_do(tmp_path: Path, failing: str | None):
    """With programs that do nothing in place of all that CI calls, it passes if all of them do, and shows the log of
    what ran beside the rest."""
    shutil.copy(ROOT / ".ci" / "run", tmp_path / "run")
    parts = [part.name for part in (ROOT / ".ci").iterdir() if part.name != "run"]
    programs = [f".venv/bin/{name}" for name in ("python", "pip", "fastmerge", "ruff", "clang-format")]
    for name in (*programs, *(f".ci/{part}" for part in parts)):
        status = 1 if failing and name.endswith(failing) else 0
        write_program(tmp_path / name, f"echo {name} ran", f"exit {status}")
    os.rename(tmp_path / "run", tmp_path / ".ci" / "run")
    found = ("python3", "g++", "aarch64-linux-gnu-g++", "qemu-aarch64", "chromium", "git")
    for name in found:
        write_program(tmp_path / "bin" / name)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run([tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (failing is None), done.stderr
    if failing in (None, "peers"):
        assert ".ci/peers ran" in done.stdout
