"""The README: its code runs, its tables are current, its set-up commands are those of CI."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import make_tensors, save_model

from fastmerge.cli.methods import with_tables

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_tables_of_methods_are_current():
    for page in ("README.md", "docs/parameters.md"):
        text = (ROOT / page).read_text()
        assert with_tables(text) == text, "run: fastmerge methods --update README.md --update docs/parameters.md"


def test_the_set_up_commands_are_single_lines_that_ci_runs():
    setup = blocks("sh")[:2]
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    for block in setup:
        assert block.count("\n") == 1
        assert f"{block.strip()} || exit 1" in ci


def test_every_environment_variable_is_in_the_table():
    sources = [*ROOT.glob("kernels/**/*.py"), *ROOT.glob("fastmerge/**/*.py"), ROOT / "setup.py"]
    used = {name for path in sources for name in re.findall(r"\"(FASTMERGE_[A-Z_]*[A-Z])\"", path.read_text())}
    page = (ROOT / "docs" / "terminal.md").read_text()
    assert used and used == set(re.findall(r"^\| `(FASTMERGE_[A-Z_]+)`", page, re.MULTILINE))


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.slow
def test_the_code_runs(tmp_path, monkeypatch):
    base = make_tensors(seed=0)
    save_model(tmp_path / "fastmerge-demo" / "base", base)
    for seed, name in enumerate(("red", "green", "blue"), start=1):
        save_model(tmp_path / "fastmerge-demo" / name, make_tensors(seed=seed, base=base))
    (tmp_path / "recipe.yml").write_text(blocks("yaml")[0])
    shell = blocks("sh")[2].replace("source .venv/bin/activate\n", "set -e\n")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    result = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    monkeypatch.chdir(tmp_path)
    for code in blocks("python"):
        exec(code, {})
