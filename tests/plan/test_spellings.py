"""One folder that is written in several ways is one model."""

from __future__ import annotations

import importlib
import shutil

import pytest

from fastmerge.engine import RunOptions, run
from fastmerge.engine import verify as verify_output
from fastmerge.errors import InvalidInput

TASK = """
merge_method: task_arithmetic
base_model: base
models: [{model: SPELLING, parameters: {weight: 0.5}}, {model: a, parameters: {weight: 0.5}}]
parameters: {normalize: true}
"""


@pytest.mark.parametrize("spelling", ["base/", "./base", "a/../base", "link"])
def test_the_base_among_the_models(family, plan_of, tmp_path, spelling):
    (tmp_path / "link").symlink_to(tmp_path / "base")
    plan = plan_of(TASK.replace("SPELLING", spelling))
    assert plan.digest == plan_of(TASK.replace("SPELLING", "base")).digest
    assert [model.reference for model in plan.models] == ["base", "a"]
    assert {len(output.inputs.tensors) for output in plan.outputs} == {1}


def test_a_model_twice_is_said(family, plan_of):
    plan = plan_of("merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: ./a}, {model: b}]")
    assert [model.reference for model in plan.models] == ["a", "b"]
    assert any("a is listed 2 times" in note for note in plan.notes)


def test_verified_from_elsewhere(family, plan_of, tmp_path, monkeypatch):
    run(plan_of(TASK.replace("SPELLING", "base/")), "out", RunOptions())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert verify_output(tmp_path / "out").ok


def test_a_hub_id_and_its_snapshot(family, plan_of, tmp_path, monkeypatch):
    """That both are one folder shows only when the id is looked up."""
    snapshot = tmp_path / "cache" / "models--org--a" / "snapshots" / "1a"
    shutil.copytree("a", snapshot)
    locate = importlib.import_module("fastmerge.checkpoint.locate")
    monkeypatch.setattr(locate, "_download", lambda name, revision: str(snapshot))
    text = f"merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: org/a}}, {{model: {snapshot}}}]"
    with pytest.raises(InvalidInput, match=f"is the same folder as org/a: {snapshot} \\(write both in one way\\)"):
        plan_of(text)
    repository = f"merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: {snapshot.parents[1]}}}]"
    assert plan_of(repository).models[0].folder == str(snapshot)
