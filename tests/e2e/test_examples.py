"""The recipes in examples/: each merges the models of the demo, and fits the schema that editors are given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

import fastmerge
from fastmerge.demo.model import Decoder, Size, save
from fastmerge.demo.tasks import LANGUAGES, VOCAB, vocabulary
from fastmerge.recipe import schema

RECIPES = sorted((Path(__file__).parents[2] / "examples").glob("*.yml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with models of the demo's names and shapes, untrained."""
    folder = tmp_path_factory.mktemp("examples")
    for seed, name in enumerate(("base", *LANGUAGES)):
        torch.manual_seed(seed)
        save(Decoder(Size(VOCAB)), folder / "fastmerge-demo" / name, vocabulary())
    return folder


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_an_example_merges(recipe, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    assert fastmerge.check(recipe, strict=True).notes == ()
    fastmerge.merge(recipe, tmp_path / "out")
    assert fastmerge.verify(tmp_path / "out").ok


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_an_example_fits_the_schema(recipe):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator(schema(strict=True)).validate(yaml.safe_load(recipe.read_text()))
    assert recipe.read_text().startswith("# ")
