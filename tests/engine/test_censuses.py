"""Censuses of a run: the whole model is surveyed before its first tensor is merged, whatever the budget."""

from __future__ import annotations

import pytest
import torch
from tiny_merges import make_merge, outputs_of, same_files
from tiny_models import make_tensors

from fastmerge import merge_state_dicts
from fastmerge.engine import RunOptions, run, verify
from fastmerge.engine.checksums import BLOCK
from fastmerge.engine.files import OutputFiles
from fastmerge.engine.forecast import forecast
from fastmerge.errors import BudgetError, FastmergeError, OutputError

WIDE = {"hidden": 256, "inner": 640, "vocab": 768, "layers": 1}
RECIPES = {
    "ties": ("semantics: paper\n", "{density: 0.3}", {"semantics": "paper", "density": 0.3}),
    "magnitude_prune": ("", "{weight: 0.5, density: 0.3}", {"weight": 0.5, "density": 0.3, "scope": "model"}),
    "task_arithmetic": (
        "lines: {beta: 0.5, auto: true}\n", "{weight: 0.5}", {"weight": 0.5, "lines": {"beta": 0.5, "auto": True}}
    ),
}  # fmt: skip


def make(folder, method, **size):
    """Return a merge by a method that takes a census, and the values it is given."""
    head, own, values = RECIPES[method]
    merge = make_merge(folder, "task_arithmetic", **(size or WIDE))
    recipe = merge.recipe.replace("{weight: 0.5}", own).replace("task_arithmetic", method) + head
    if method == "magnitude_prune":
        recipe += "parameters: {scope: model}\n"
    return type(merge)(recipe, merge.out), values


@pytest.mark.parametrize("method", RECIPES)
def test_bits_are_those_of_a_merge_in_memory(method, tmp_path):
    merge, values = make(tmp_path, method)
    plan = merge.plan()
    report = run(plan, merge.out)
    base = make_tensors(0, **WIDE)
    expected = merge_state_dicts(base, [make_tensors(k + 1, base=base) for k in range(3)], method=method, **values)
    found = outputs_of(merge.out)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    # Some of the models is read for every census, and one tensor of it to see that there is no other.
    reads = {"ties": 4, "magnitude_prune": 4, "task_arithmetic": 2}[method]
    assert (reads - 0.5) * plan.bytes_read < report.bytes_read < (reads + 0.9) * plan.bytes_read
    assert verify(merge.out, sample=2).ok


@pytest.mark.parametrize("method", RECIPES)
def test_budget_and_threads_change_no_byte(method, tmp_path):
    merge, _ = make(tmp_path, method)
    plan = merge.plan()
    run(plan, tmp_path / "roomy")
    with pytest.raises(BudgetError, match=r"at least \d+ ") as caught:
        run(plan, "never", RunOptions(ram=1, threads=1))
    least = int(str(caught.value).split("at least ")[1].split()[0])
    run(plan, tmp_path / "tight", RunOptions(ram=least, threads=1, chunk=BLOCK))
    assert same_files(tmp_path / "roomy", tmp_path / "tight")


@pytest.mark.compiled  # of which the budget is
def test_a_run_that_goes_on_knows_what_all_tensors_have(tmp_path, monkeypatch):
    merge, _ = make(tmp_path, "ties")
    plan = merge.plan()
    run(plan, tmp_path / "whole")

    with monkeypatch.context() as patched:
        write, left = OutputFiles.write, iter(range(12))

        def write_some(*args):
            if next(left, None) is None:
                raise OutputError("the disk is full")
            write(*args)

        patched.setattr(OutputFiles, "write", write_some)
        with pytest.raises(OutputError):
            run(plan, merge.out, RunOptions(chunk=BLOCK, threads=1, ram=3 << 20))
    report = run(plan, merge.out)
    assert 0 < report.resumed < len(plan.outputs)
    assert same_files(tmp_path / "whole", merge.out)


def test_forecast_counts_the_readings(tmp_path):
    merge, _ = make(tmp_path, "ties")
    once = make_merge(tmp_path, "task_arithmetic", **WIDE).plan()
    found, plain = forecast(merge.plan(), 1 << 30), forecast(once, 1 << 30)
    moved = found.seconds * found.read_rate - plain.seconds * plain.read_rate
    assert moved == pytest.approx(3 * once.bytes_read)


def test_what_a_census_refuses_names_the_tensor(tmp_path, monkeypatch):
    merge, _ = make(tmp_path, "ties", hidden=16, inner=32, vocab=32, layers=1)

    def refuse(*_):
        raise ValueError("model.norm.weight: no")

    monkeypatch.setattr("fastmerge.steps.census.histograms", refuse)
    with pytest.raises(FastmergeError, match=r"model\.norm\.weight: no"):
        run(merge.plan(), merge.out)
