"""The installed command in its own process: start-up, pipes, statuses, interruption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import write_recipe
from safetensors.torch import save_file
from tiny_models import make_tensors, save_family

COMMAND = Path(sys.executable).with_name("fastmerge")


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    command = [str(COMMAND), *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def imported_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after ``statement``."""
    code = f"{statement}\nimport sys, json\nprint(json.dumps([name.split('.')[0] for name in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return save_family(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("statement", ["import fastmerge", "import fastmerge.cli"])
def test_importing_loads_nothing_heavy(statement):
    heavy = {"torch", "numpy", "pydantic", "yaml", "rich", "transformers", "huggingface_hub", "safetensors"}
    assert not imported_by(statement) & heavy


def test_a_merge_loads_no_optional_package(models, tmp_path):
    recipe = write_recipe(tmp_path / "r.yml", models)
    statement = f"import fastmerge; fastmerge.merge({str(recipe)!r}, {str(tmp_path / 'out')!r})"
    assert not imported_by(statement) & {"transformers", "huggingface_hub", "triton", "rich", "click"}


def test_help_names_every_command():
    result = run("--help")
    assert result.returncode == 0
    for name in ("merge", "plan", "check", "verify", "inspect", "diff", "methods", "doctor", "bench", "demo"):
        assert f"\n  {name} " in result.stdout


def test_merge_in_a_pipe(models, tmp_path):
    recipe = write_recipe(tmp_path / "r.yml", models)
    result = run("merge", recipe, tmp_path / "out", "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert json.loads(result.stdout)["tensors"] == 21


def test_an_error_is_one_message_without_a_traceback(models, tmp_path):
    recipe = write_recipe(tmp_path / "r.yml", models, base_model=str(tmp_path / "nowhere"))
    result = run("merge", recipe, tmp_path / "out")
    assert result.returncode == 2
    assert "nowhere" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_tables_have_no_colours_in_a_pipe():
    result = run("methods", FORCE_COLOR="", NO_COLOR="1")
    assert result.returncode == 0
    assert "\x1b[" not in result.stdout


@pytest.mark.slow
def test_an_interrupted_merge_says_how_to_go_on_and_does(tmp_path):
    # Too large for the budget to be merged together.
    tensors = {f"model.layers.{i}.mlp.up_proj.weight": make_tensors()["lm_head.weight"].repeat(8, 4) for i in range(6)}
    for name in ("base", "one", "two", "three"):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    recipe = write_recipe(tmp_path / "r.yml", tmp_path)
    arguments = ["merge", recipe, tmp_path / "out", "--threads", "1", "--ram", "16MiB"]
    interrupted = [sys.executable, "-m", "fastmerge.demo.interrupting", "2", *map(str, arguments)]
    done = subprocess.run(interrupted, capture_output=True, text=True)
    stderr = done.stderr
    assert done.returncode == 130, stderr
    assert "interrupted: stopped with" in stderr and "the same command goes on from there" in stderr
    assert "Traceback" not in stderr
    report = json.loads(run("merge", recipe, tmp_path / "out", "--json").stdout)
    assert 0 < report["resumed"] < report["tensors"]
