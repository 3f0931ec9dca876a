"""Models in the folder of a recipe: taken where the current directory has none of the name, and noted where it has."""

from __future__ import annotations

import json
import shutil

from make_distributed import DATA
from tiny_models import make_tensors, save_model

import fastmerge


def test_models_are_found_beside_the_recipe_after_the_current_directory(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for seed, folder in enumerate((there / "a", there / "b", here / "b")):
        save_model(folder, make_tensors(seed, layers=1, hidden=32, inner=32, vocab=32))
    recipe = there / "recipe.yml"
    recipe.write_text("merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n")
    monkeypatch.chdir(here)
    plan = fastmerge.check(recipe)
    assert [model.folder for model in plan.models] == [str(there / "a"), str(here / "b")]
    assert [note for note in plan.notes if "beside" in note] == [
        f"b: is the one in the current directory, not {there / 'b'} beside the recipe"
    ]
    fastmerge.merge(recipe, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    assert fastmerge.verify(tmp_path / "out").ok
    assert [model.folder for model in fastmerge.check(recipe).models] == [str(there / "a"), str(there / "b")]


def test_a_source_of_configs_is_found_beside_the_recipe(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(DATA / "step-1", there / "run")
    for folder, kind in ((there / "source", "there"), (here / "source", "here")):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    recipe = there / "recipe.yml"
    recipe.write_text("merge_method: linear\nmodels: [{model: run, parameters: {weight: 1}}]\nconfig_source: source\n")
    for folder, kind in ((here, "here"), (there, "there"), (tmp_path, "there")):
        monkeypatch.chdir(folder)
        assert json.loads(fastmerge.check(recipe).files["config.json"].text)["model_type"] == kind
    fastmerge.merge(recipe, tmp_path / "out")
    monkeypatch.chdir(here)
    assert fastmerge.verify(tmp_path / "out").ok
