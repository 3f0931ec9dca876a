"""Which sources of a slice are inputs of its method."""

from __future__ import annotations

import pytest

from fastmerge.recipe import SourceSpec, load, parts_of
from fastmerge.steps.inputs import Inputs


def inputs(text: str) -> tuple[str | None, list[str], Inputs[SourceSpec]]:
    recipe = load(text)
    found = parts_of(recipe, recipe.modules[0], recipe.slices[-1]).default.inputs
    return found.base and str(found.base.model), [str(source.model) for source in found.tensors], found


SLERP = "merge_method: slerp\nparameters: {t: 0.5}\n"
LINEAR = "merge_method: linear\nparameters: {weight: 0.5}\n"


@pytest.mark.parametrize("models", ["[b, a]", "[a, b]", "[a]"])
def test_a_base_is_no_input_listed_or_not(models: str) -> None:
    base, sources, found = inputs(f"{SLERP}base_model: b\nmodels: {models}\n")
    assert (base, sources) == ("b", ["a"])
    assert found.base is not None and found.base.layers is None


def test_a_method_without_base_takes_it_as_one_of_the_models() -> None:
    assert inputs(f"{LINEAR}base_model: b\nmodels: [b, a]\n")[:2] == (None, ["b", "a"])


def test_a_method_without_base_appends_one_that_is_not_listed() -> None:
    text = f"{LINEAR}base_model: b\nmodels: [a, c]\n"
    assert inputs(text)[:2] == (None, ["a", "c", "b"])
    assert load(text).notes == ("<recipe>:4:1: models: base_model b is one more input: linear has no base",)


def test_slices_without_base_do_not_take_the_base_model() -> None:
    text = "merge_method: passthrough\nbase_model: b\nslices:\n- sources: [{model: a, layer_range: [0, 2]}]\n"
    assert inputs(text)[:2] == (None, ["a"])
    assert load(text).notes == ()


def test_a_slice_may_have_its_own_base() -> None:
    sources = "sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [1, 3]}]"
    text = f"{SLERP}base_model: a\nslices:\n- {sources}\n- base_model: b\n  {sources}\n"
    base, rest, found = inputs(text)
    assert (base, rest) == ("b", ["a"])
    assert found.base is not None and found.base.layers == (1, 3)
