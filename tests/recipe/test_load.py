"""Recipes that load, and what becomes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipes import minimal_recipe

from fastmerge.methods import all_methods
from fastmerge.recipe import ModelRef, TokenizerSpec, check, load, parts_of

DATA = Path(__file__).parents[1] / "data" / "recipes"
METHODS = list(all_methods().values())


@pytest.mark.parametrize("path", sorted(DATA.glob("*.yml")), ids=lambda path: path.stem)
def test_recipes_of_every_form_load(path: Path) -> None:
    recipe = load(path)
    assert recipe.text == path.read_text()
    assert check(recipe) == []
    assert recipe.method == path.stem


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_smallest_recipe_of_every_method_loads(method) -> None:
    recipe = load(minimal_recipe(method))
    assert recipe.notes == ()
    assert len(parts_of(recipe, recipe.modules[0], recipe.slices[0]).default.inputs.tensors) == method.inputs[0]


def test_fields() -> None:
    recipe = load(DATA / "dare_ties.yml")
    assert (recipe.dtype, recipe.out_dtype, recipe.seed, recipe.semantics) == ("float32", "bfloat16", 7, None)
    assert recipe.base == ModelRef("org/base")
    expert, adapter = ModelRef("org/expert-a"), ModelRef("org/adapter")
    (slice_,) = recipe.slices
    assert slice_.sources[0].model == ModelRef("org/expert-a", lora=adapter) != expert
    assert slice_.sources[0].where == f"{DATA / 'dare_ties.yml'}:4:5: models[0]"
    assert recipe.models == (recipe.base, slice_.sources[0].model, ModelRef("org/expert-b"))


def test_references_and_words() -> None:
    recipe = load(DATA / "linear.yml")
    assert [str(source.model) for source in recipe.slices[0].sources] == [
        "org/expert-a@v1.2",
        "org/expert-b@2024-01-01+org/adapter",
        "org/expert-c",
    ]
    assert (recipe.dtype, recipe.chat_template, recipe.base) == ("bfloat16", "auto", None)
    assert load(DATA / "ties.yml").tokenizer == TokenizerSpec("base")
    assert load(DATA / "task_arithmetic.yml").tokenizer == TokenizerSpec(ModelRef("org/expert-a"))


def test_slices() -> None:
    recipe = load(DATA / "passthrough.yml")
    assert [slice_.sources[0].layers for slice_ in recipe.slices] == [(0, 24), (16, 32)]


def test_text_dicts_and_overrides() -> None:
    text = (DATA / "ties.yml").read_text().replace("  normalize: true\n", "")
    recipe = load(text, seed=3, semantics="peft")
    assert (recipe.path, recipe.text, recipe.seed, recipe.semantics) == ("<recipe>", text, 3, "peft")
    again = load({"merge_method": "linear", "models": ["a", "b"], "parameters": {"weight": 1}, "seed": 5})
    assert again.seed == 5 and "merge_method: linear" in again.text


def test_a_byte_order_mark_anchors_and_an_empty_last_document_are_fine(tmp_path: Path) -> None:
    text = """\
merge_method: linear
models:
  - {model: a, parameters: &same {weight: 0.5}}
  - model: b
    parameters:
      <<: *same
---
"""
    (tmp_path / "recipe.yml").write_text(text, encoding="utf-8-sig")
    recipe = load(tmp_path / "recipe.yml")
    assert [source.parameters["weight"].branches[0].value for source in recipe.slices[0].sources] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("ties", ["ties.yml:19:3: parameters.int8_mask: has no effect here; it does not change the result"]),
        ("model_stock", ["model_stock.yml:4:1: normalize: is not a parameter of model_stock; it has no effect"]),
        ("task_arithmetic", [":3:1: allow_negative_weights: is a key of mergekit-evolve; it has no effect"]),
        ("slerp", []),
    ],
)
def test_what_has_no_effect_is_noted(name: str, notes: list[str]) -> None:
    found = load(DATA / f"{name}.yml").notes
    assert len(found) == len(notes)
    for note, expected in zip(found, notes, strict=True):
        assert note.endswith(expected)


def test_parameters_of_a_listed_base_are_noted() -> None:
    recipe = load("merge_method: ties\nbase_model: b\nparameters: {weight: 1}\nmodels:\n"
                  "- {model: b, parameters: {weight: 0.2}}\n- model: a\n")  # fmt: skip
    assert recipe.notes == ("<recipe>:5:3: models[0]: is the base model; its own parameters have no effect",)
