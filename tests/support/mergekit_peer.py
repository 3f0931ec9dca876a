"""mergekit 0.1.5 as it is installed, in an interpreter of its own: its dependencies need not be those of the tests."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

VERSION = "0.1.5"

# Merges every (recipe, output) of the standard input, by mergekit-multi where it has several documents.
_MERGE = """
import json, sys, traceback
from mergekit.scripts.multimerge import main as multi
from mergekit.scripts.run_yaml import main as single
results = {}
for name, (recipe, out) in json.load(sys.stdin).items():
    options = ["--random-seed", "0", "--quiet", "--lora-merge-cache", out + ".loras"]
    try:
        if "\\n---\\n" in open(recipe, encoding="utf-8").read():
            multi([recipe, "--out-path", out, "-I", out + ".steps", *options], standalone_mode=False)
        else:
            single([recipe, out, *options], standalone_mode=False)
        results[name] = None
    except BaseException as error:
        results[name] = f"{type(error).__name__}: {error}"
print("RESULTS " + json.dumps(results))
"""

# Builds every mixture of experts likewise.
_MIXTURES = """
import json, sys
from mergekit.scripts.moe import main
results = {}
for name, (recipe, out) in json.load(sys.stdin).items():
    options = ["--random-seed", "0", "--quiet", "--i-understand-this-is-not-useful-without-training"]
    try:
        main([recipe, out, *options], standalone_mode=False)
        results[name] = None
    except BaseException as error:
        results[name] = f"{type(error).__name__}: {error}"
print("RESULTS " + json.dumps(results))
"""


def mergekit_python() -> str:
    """Return an interpreter that has mergekit: ``FASTMERGE_MERGEKIT_PYTHON``, or this one; skips without either."""
    given = os.environ.get("FASTMERGE_MERGEKIT_PYTHON")
    if given:
        return given
    try:
        found = importlib.metadata.version("mergekit")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("mergekit is not installed here, and FASTMERGE_MERGEKIT_PYTHON names no interpreter that has it")
    if found != VERSION:
        pytest.skip(f"mergekit is {found} here, not {VERSION}")
    return sys.executable


def help_of(script: str) -> str:
    """Return what a script of mergekit prints for ``--help``."""
    code = f"import sys; from mergekit.scripts.{script} import main; sys.argv = ['x', '--help']; main()"
    return subprocess.run([mergekit_python(), "-c", code], capture_output=True, text=True, check=True).stdout


def merge_all(recipes: Mapping[str, Sequence[Path]]) -> dict[str, str | None]:
    """Merge every (recipe, output folder); return the error of each, or None."""
    return _run(_MERGE, recipes)


def build_all(recipes: Mapping[str, Sequence[Path]]) -> dict[str, str | None]:
    """As ``merge_all``, by mergekit-moe."""
    return _run(_MIXTURES, recipes)


def _run(program: str, recipes: Mapping[str, Sequence[Path]]) -> dict[str, str | None]:
    pairs = {name: [str(path) for path in pair] for name, pair in recipes.items()}
    command = [mergekit_python(), "-c", program]
    result = subprocess.run(command, input=json.dumps(pairs), capture_output=True, text=True)
    lines = [line for line in result.stdout.splitlines() if line.startswith("RESULTS ")]
    assert lines, result.stderr[-2000:]
    return json.loads(lines[-1].removeprefix("RESULTS "))
