"""What commands load: neither torch nor other heavy packages where they only read headers or compare.

One process runs all commands, one after the other; the first that loads something of HEAVY is named.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_models import save_family

from fastmerge.devices.gpus import why_no_driver

DISTRIBUTED = Path(__file__).resolve().parents[1] / "data" / "distributed" / "step-1"
HEAVY = ("torch", "transformers", "huggingface_hub", "matplotlib", "jinja2", "pandas", "scipy")

RUN = """
import contextlib, io, json, sys

from fastmerge.cli import main

heavy, commands = json.loads(sys.argv[1])
for status, *command in commands:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main(command, prog_name="fastmerge")
        except SystemExit as end:
            found = end.code or 0
    loaded = [name for name in heavy if name in sys.modules]
    if loaded or found != status:
        raise SystemExit(f"{command} ends with {found}, {loaded} are loaded; it said:\\n{out.getvalue()}")
"""

TIES = """
merge_method: ties
base_model: {models}/base
models:
- {{model: {models}/one, parameters: {{weight: 1, density: 0.5}}}}
- {{model: {models}/two, parameters: {{weight: 0.5, density: 0.3}}}}
- {{model: {models}/three, parameters: {{weight: 0.5, density: 0.3}}}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with models and recipes."""
    folder = tmp_path_factory.mktemp("place")
    save_family(folder / "models")
    (folder / "ties.yml").write_text(TIES.format(models=folder / "models"))
    (folder / "wrong.yml").write_text("merge_method: [linear\nmodels: []\n")
    (folder / "unknown.yml").write_text(TIES.format(models=folder / "models") + "densty: 1\nmodls: []\n")
    return folder


def run(place: Path, *commands: tuple[object, ...], heavy: Sequence[str] = HEAVY) -> None:
    """Run commands in one process; the first item of each is the status with which it ends."""
    given = json.dumps([heavy, [[status, *map(str, command)] for status, *command in commands]])
    done = subprocess.run([sys.executable, "-c", RUN, given], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help(place):
    run(place, (0, "--help"), (0, "--version"), (0, "merge", "--help"), heavy=(*HEAVY, "numpy", "pydantic", "yaml"))


def test_commands_that_merge_nothing(place):
    one = place / "models" / "one"
    run(
        place,
        (2, "check", "wrong.yml"), (2, "check", "unknown.yml"), (0, "check", "ties.yml"),
        (0, "plan", "ties.yml"), (0, "plan", "ties.yml", "--explain", "lm_head.weight"),
        (0, "inspect", one), (0, "inspect", one, "--tensors"), (0, "inspect", DISTRIBUTED),
        (0, "methods"), (0, "methods", "ties"), (0, "methods", "boost"), (2, "methods", "tise"),
        (0, "schema"), (0, "clean", ".", "--dry-run"), (0, "check", "ties.yml", "--json"),
    )  # fmt: skip


@pytest.mark.compiled
def test_commands_that_compare_elements(place):
    one, two = place / "models" / "one", place / "models" / "two"
    run(place, (0, "diff", one, two), (0, "merge", "ties.yml", "out"), (0, "verify", "out"), (0, "inspect", "out"),
        (0, "diff", DISTRIBUTED, DISTRIBUTED))  # fmt: skip


@pytest.mark.skipif(why_no_driver() is None, reason="torch is asked about the GPU")
def test_commands_that_look_for_gpus(place):
    run(place, (0, "doctor"), (0, "plan", "ties.yml", "--device", "auto"))


def test_a_method_is_loaded_when_it_is_named(place):
    check = """
import sys
from fastmerge.methods import get_method
get_method("linear")
print([name for name in sys.modules if name.startswith("fastmerge.methods.") and not name.split(".")[-1][0] == "_"])
"""
    done = subprocess.run([sys.executable, "-c", check], cwd=place, capture_output=True, text=True, check=True)
    assert done.stdout == "['fastmerge.methods.linear']\n"


def test_numpy_starts_no_threads(place):
    check = """
import os
from fastmerge.cli import main
try:
    main(["check", "ties.yml", "--quiet"])
except SystemExit as end:
    print(end.code, len(os.listdir("/proc/self/task")), os.environ.get("OPENBLAS_NUM_THREADS"))
"""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    command = [sys.executable, "-c", check]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "0 1 None\n"
