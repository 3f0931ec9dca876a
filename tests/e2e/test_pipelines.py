"""Recipes of several documents, merged: bits, places of intermediate results, and verification."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from commands import call, call_json
from safetensors.torch import load_file
from tiny_models import save_family

import fastmerge
from fastmerge import pipelines
from fastmerge.engine import run, workplace
from fastmerge.errors import CheckpointError, InvalidInput, OutputError

RECIPE = """
name: soup
merge_method: linear
models: [{0}/one, {0}/two]
parameters: {{weight: 0.5}}
dtype: bfloat16
---
merge_method: ties
base_model: {0}/base
models: [soup, {0}/three]
parameters: {{weight: 1, density: 0.5}}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_family(tmp_path_factory.mktemp("models"))


@pytest.fixture
def recipe(models, tmp_path):
    path = tmp_path / "recipe.yml"
    path.write_text(RECIPE.format(models))
    return path


def weights(folder) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def by_hand(models, folder) -> dict[str, torch.Tensor]:
    """Merge the documents as recipes of their own."""
    soup, last = RECIPE.format(models).split("---\n")
    fastmerge.merge(soup, folder / "soup")
    fastmerge.merge(last.replace("[soup,", f"[{folder}/soup,"), folder / "result")
    return weights(folder / "result")


@pytest.fixture(params=["memory", "disk"])
def place(request, monkeypatch, tmp_path):
    """Where intermediate results go: to a folder in memory, or beside the output."""
    memory = tmp_path / "memory"
    if request.param == "memory":
        memory.mkdir()
    monkeypatch.setattr(workplace, "MEMORY", memory)
    return request.param


def test_the_result_is_that_of_single_merges(models, recipe, place, tmp_path):
    seen = []
    fastmerge.merge(recipe, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    wanted = by_hand(models, tmp_path / "hand")
    found = weights(tmp_path / "out")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    assert not (tmp_path / ".out.steps").exists() and not list((tmp_path / "memory").glob("*"))
    assert (tmp_path / "out" / "mergekit_config.yml").read_text() == RECIPE.format(models).lstrip("\n")
    assert fastmerge.verify(tmp_path / "out").ok


def test_a_step_that_was_made_is_taken_over(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(workplace, "MEMORY", tmp_path / "none")
    made = []

    def failing(plan, out, *rest):
        made.append(out.rpartition("/")[2])
        if made == ["soup", "out"]:
            raise OutputError("the disk is full")
        return run(plan, out, *rest)

    monkeypatch.setattr(pipelines, "run", failing)
    with pytest.raises(OutputError, match="disk is full"):
        fastmerge.merge(recipe, tmp_path / "out")
    assert (tmp_path / ".out.steps" / "soup" / "fastmerge.json").exists()
    fastmerge.merge(recipe, tmp_path / "out")
    assert made == ["soup", "out", "out"] and not (tmp_path / ".out.steps").exists()


def test_what_is_wrong_later_is_found_before_anything_is_merged(recipe, tmp_path, monkeypatch):
    text = recipe.read_text().replace("density: 0.5", "density: {filter: mlp, value: -1}")
    monkeypatch.setattr(pipelines, "run", None)
    with pytest.raises(InvalidInput, match=r"density.value: is -1, expected a number in \[0, 1\]"):
        fastmerge.merge(text, tmp_path / "out")
    with pytest.raises(InvalidInput, match="layer_range"):
        sliced = "merge_method: passthrough\nslices: [{sources: [{model: soup, layer_range: [0, 99]}]}]\n"
        fastmerge.merge(text.split("---\n")[0] + "---\n" + sliced, tmp_path / "out")


def test_verification_merges_what_is_gone_again(models, recipe, tmp_path):
    call("multi", recipe, tmp_path / "out", "-I", tmp_path / "steps", "--quiet")
    assert (tmp_path / "steps" / "soup" / "config.json").exists()
    assert fastmerge.verify(tmp_path / "out").ok
    shutil.rmtree(tmp_path / "steps")
    report = fastmerge.verify(tmp_path / "out")
    assert report.ok and report.notes == () and report.recomputed == report.tensors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "recipe.yml"]
    path = tmp_path / "out" / "fastmerge.json"
    manifest = json.loads(path.read_text())
    manifest["steps"]["soup"]["recipe"] = manifest["steps"]["soup"]["recipe"].replace("0.5", "0.3, normalize: false")
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="'soup' comes out with other bytes"):
        fastmerge.verify(tmp_path / "out")


class TestMulti:
    def test_as_mergekit_multi_is_called(self, recipe, tmp_path):
        options = ["--out-path", tmp_path / "out", "-I", tmp_path / "steps"]
        first = call("multi", recipe, *options)
        assert first.exit_code == 0 and f"merged 21 tensors into {tmp_path}/out" in first.stdout
        again = call("multi", recipe, *options, "--overwrite")
        assert again.stdout.startswith(f"{tmp_path}/steps/soup: was there already, made from the same inputs\n")
        anew = call_json("multi", recipe, *options, "--overwrite", "--no-lazy")
        assert [step["name"] for step in anew] == ["soup", ""] and all(step["tensors"] for step in anew)

    def test_documents_that_are_all_named(self, recipe, tmp_path):
        soup = recipe.read_text().split("---\n")[0]
        recipe.write_text("---\n".join(soup.replace("soup", name) for name in "xy"))
        assert call("multi", recipe, "-I", tmp_path / "steps", "--quiet").exit_code == 0
        assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["x", "y"]
        refused = call("multi", recipe, tmp_path / "out")
        assert "the documents of the recipe have several results; leave out the name of one" in refused.stderr
        assert "say where their results go (--intermediate-dir)" in call("multi", recipe).stderr

    def test_plan_and_check(self, recipe):
        plans = call_json("plan", recipe)
        assert [plan["name"] for plan in plans] == ["soup", ""] and plans[1]["models"][1] == "soup"
        text = call("check", recipe).stdout
        assert text.startswith(f"{recipe}: soup: nothing is wrong; ") and text.count("nothing is wrong") == 2
        assert call("multi", recipe, "--dry-run").stdout.startswith("soup:\nmethod ")


def test_what_a_failure_leaves_is_told_and_cleaned(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(workplace, "MEMORY", tmp_path / "none")
    made = []

    def failing(plan, out, *rest):
        made.append(out)
        if len(made) == 2:
            raise OutputError("the disk is full")
        return run(plan, out, *rest)

    monkeypatch.setattr(pipelines, "run", failing)
    out = tmp_path / "out"
    with pytest.raises(OutputError, match=rf"full; intermediate results are kept in .*steps.*; fastmerge clean {out}"):
        fastmerge.merge(recipe, out)
    (value,) = call_json("clean", out)
    assert value["path"] == str(tmp_path / ".out.steps") and value["nbytes"] > 0 and not value["in_use"]
    call("clean", out, "--yes")
    assert not (tmp_path / ".out.steps").exists()


def test_results_in_memory_that_a_kill_left_are_cleaned(tmp_path, monkeypatch):
    monkeypatch.setattr(workplace, "MEMORY", tmp_path)
    place = workplace.place_in_memory(tmp_path / "out")
    with workplace.intermediates_of(tmp_path / "out", True) as folder:
        assert folder == place and folder.stat().st_mode & 0o777 == 0o700
        (value,) = call_json("clean", tmp_path / "out")
        assert value["in_use"]
        with (
            pytest.raises(OutputError, match="another fastmerge"),
            workplace.intermediates_of(tmp_path / "out", True),
        ):
            pytest.fail("two in one folder")
        (folder / "soup").mkdir()
    assert not place.exists()
    (place / "soup").mkdir(parents=True)
    assert call("clean", tmp_path / "out", "--yes").stdout.splitlines()[-1].startswith("removed 1")
    assert not place.exists()
    place.symlink_to(tmp_path)
    with pytest.raises(OutputError), workplace.intermediates_of(tmp_path / "out", True):
        pytest.fail("a link was followed")


@pytest.mark.parametrize("folder", ["out", "disk"])
def test_a_target_that_cannot_be_is_found_before_any_work(recipe, tmp_path, monkeypatch, folder):
    monkeypatch.setattr(pipelines, "run", lambda *args: pytest.fail("a step was merged"))
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "notes").touch()
    (tmp_path / "out").symlink_to("disk")
    with pytest.raises(OutputError, match=r"disk exists; choose another folder$"):
        fastmerge.merge(recipe, tmp_path / folder)
