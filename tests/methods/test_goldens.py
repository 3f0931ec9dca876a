"""Methods against what other tools return, within the bounds of ``golden_bounds``.

A method with a test file of its own has its bound there.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from golden_bounds import BOUNDS
from golden_cases import FOLDER, check, load_mergekit, load_peft, mergekit_cases, peft_cases

from fastmerge.methods import all_methods

CASES = {name: case for name, case in mergekit_cases(FOLDER).items() if case["method"] in BOUNDS}


@pytest.mark.parametrize("name", CASES)
def test_mergekit(name, monkeypatch):
    for golden in load_mergekit(FOLDER, name, CASES[name]):
        check(golden, BOUNDS[golden.method.name], monkeypatch)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("della")])
def test_masks_of_mergekit_follow_the_ranks(name):
    """In the masks that mergekit drew, probabilities rise with the rank in our rows: by 2 epsilon, within 4.5 sigma."""
    for golden in load_mergekit(FOLDER, name, CASES[name]):
        survey = next(golden.method.merge(golden.group))
        for delta, mask, (density, epsilon) in zip(golden.deltas, golden.masks, survey.chances, strict=True):
            order = delta.abs().view(survey.rows).argsort(dim=1, stable=True)
            rank = order.argsort(dim=1).double() / (survey.rows[1] - 1) - 0.5
            kept = mask.view(survey.rows).double() - density
            slope, noise = (rank * kept).sum() / (rank**2).sum(), 0.5 / (rank**2).sum().sqrt()
            assert abs(slope - 2 * epsilon) < 4.5 * noise, f"{golden.group.name}: {slope:.3f} for {2 * epsilon:.3f}"
            assert abs(kept.mean()) < 4.5 * 0.5 / kept.numel() ** 0.5


@pytest.mark.parametrize("name", peft_cases(FOLDER))
def test_peft(name, monkeypatch):
    for golden in load_peft(FOLDER, name, peft_cases(FOLDER)[name]):
        check(golden, BOUNDS[golden.method.name], monkeypatch)


@pytest.mark.parametrize("method", [name for name in BOUNDS if "mergekit" in all_methods()[name].semantics])
def test_all_of_mergekit(method, shared, monkeypatch):
    folder = shared / "goldens"
    cases = {name: case for name, case in mergekit_cases(folder).items() if case["method"] == method}
    assert cases, f"{method} has no golden"
    for name, case in cases.items():
        for golden in load_mergekit(folder, name, case):
            check(golden, BOUNDS[golden.method.name], monkeypatch)


def test_all_of_peft(shared, monkeypatch):
    cases = peft_cases(shared / "goldens")
    assert {case["function"] for case in cases.values()} >= {"task_arithmetic", "ties_total", "dare_ties_frequency"}
    for name, case in cases.items():
        for golden in load_peft(shared / "goldens", name, case):
            check(golden, BOUNDS[golden.method.name], monkeypatch)


def test_no_golden_is_left_out(shared):
    """Every case is of a registered method, which has its bound here or compares all of them in its own test."""
    folder, tests = shared / "goldens", Path(__file__).parent
    cases = json.loads((folder / "mergekit" / "cases.json").read_text())["cases"]
    own = "".join(file.read_text() for file in tests.glob("test_*.py") if "check_mergekit" in file.read_text())
    assert cases == mergekit_cases(folder)
    for method in {case["method"] for case in cases.values()}:
        assert method in BOUNDS or f'"{method}"' in own, method
    profiles = json.loads((folder / "profiles.json").read_text())
    others = [name for name in profiles if not name.startswith("fusionbench/")]  # which test_census.py compares
    assert others == list(peft_cases(folder))


@pytest.mark.parametrize("method", all_methods())
def test_every_method_is_compared(method):
    """With a golden here, or with its formula in a test that bears its name."""
    if method in BOUNDS:
        peft = {case["function"] for case in peft_cases(FOLDER).values()}
        assert method in peft or any(case["method"] == method for case in CASES.values())
        return
    tests = Path(__file__).resolve().parents[1]
    files = [*tests.glob("methods/test_*.py"), *tests.glob("spectral/test_*.py")]
    named = re.compile(rf"^def test_{method}(_|\()", re.MULTILINE)
    assert any(file.name == f"test_{method}.py" or named.search(file.read_text()) for file in files), (
        f"compare {method} with its formula, and a golden where a tool defines it, in tests/methods/test_{method}.py"
    )
