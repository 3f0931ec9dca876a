"""What is in a recipe and has no effect: a note where mergekit ignores it, an error where something else was meant."""

from __future__ import annotations

import pytest

from fastmerge.errors import InvalidInput
from fastmerge.recipe import ModelRef, load

TIES = "merge_method: ties\nbase_model: base\nparameters: {weight: 1}\nmodels: [a, b]\n"
SLERP = "merge_method: slerp\nbase_model: base\nparameters: {t: 0.5}\nmodels: [a]\n"

NOTES = {
    TIES + "align_weights: zipit\n": "<recipe>:5:1: align_weights: is no key of a recipe; it has no effect",
    TIES + "density: 0.5\n": "<recipe>:5:1: density: has no effect; density is a parameter: write it under parameters:",
    TIES + "t: 0.5\n": "<recipe>:5:1: t: is not a parameter of ties; it has no effect",
    TIES + "out_path: x\n": "<recipe>:5:1: out_path: has no effect; the output folder is given to the command",
    TIES + "smooth: false\n": "<recipe>:5:1: smooth: is a key of mergekit-evolve; it has no effect",
    TIES.replace("{weight: 1}", "{weight: 1, dtype: float16}"): "parameters.dtype: is not a parameter, so it has no "
    "effect; write dtype: at the top level",
    TIES.replace("{weight: 1}", "{weight: 1, t: 1}"): "parameters.t: is not a parameter of ties; it has no effect",
    TIES.replace(
        "{weight: 1}", "{weight: 1, int8_mask: true}"
    ): "parameters.int8_mask: has no effect here; it does not",
    TIES.replace("[a, b]", "[{model: a, alias: x}, b]"): "models[0].alias: is no key of a recipe; it has no effect",
    TIES.replace("[a, b]", "[{model: a, parameters: {normalize: false}}, b]"): "normalize: is one value for all models",
    TIES.replace("[a, b]", "[{model: a, revision: 7}, b]"): "models[0].revision: is taken as a@7; mergekit ignores it",
    TIES.replace("[a, b]", "[{model: a, lora: l}, b]"): "models[0].lora: is taken as a+l; mergekit ignores it",
    TIES.replace("[a, b]", "[a, b, a]"): "<recipe>:4:1: models: a is listed 2 times; every entry counts",
    TIES.replace("{weight: 1}", "{weight: 1, density: [0.5, 2]}"): "parameters.density: what is above 1 counts as 1",
    SLERP.replace(
        "0.5", "[{pattern: mlp, value: 1}, {value: 0}]"
    ): "<recipe>:3:19: parameters.t[0].pattern: has no effect",
    SLERP.replace("0.5", "[{filter: '*.mlp', value: 1}, 0]"): "t[0].filter: '*.mlp' is a part of no name; patterns are",
}


@pytest.mark.parametrize(("text", "part"), NOTES.items(), ids=range(len(NOTES)))
def test_notes(text: str, part: str) -> None:
    (note,) = load(text).notes
    assert part in note


SILENT = [
    "x-defaults: &d {a: 1}\n", "name: X\ndescription: a\ntags: [b]\nlicense: mit\n", "slices:\n", "modules: null\n",
    "tokenizer_source: null\n",
]  # fmt: skip


@pytest.mark.parametrize("more", SILENT)
def test_what_needs_no_note(more: str) -> None:
    assert load(TIES + more).notes == ()


def test_what_is_said_of_the_result_is_kept_for_its_card() -> None:
    card = load(TIES + "name: X\ndescription: a\ntags: [b]\nlicense: mit\n").card
    assert card == {"name": "X", "description": "a", "tags": ["b"], "license": "mit"}


@pytest.mark.parametrize(
    ("wrong", "right"), [("dype", "dtype"), ("base-model", "base_model"), ("Merge_Method", "merge_method")]
)
def test_a_near_miss_of_a_key_is_an_error(wrong: str, right: str) -> None:
    with pytest.raises(InvalidInput, match=rf":5:1: {wrong}: unknown key \(did you mean '{right}'\?\)"):
        load(TIES + f"{wrong}: x\n")


@pytest.mark.parametrize("name", ["densitiy", "nomalize", "weigth"])
def test_a_near_miss_of_a_parameter_is_an_error(name: str) -> None:
    with pytest.raises(InvalidInput, match=rf"parameters.{name}: unknown parameter \(did you mean"):
        load(TIES.replace("{weight: 1}", f"{{weight: 1, {name}: 1}}"))


def test_references_written_apart() -> None:
    recipe = load(TIES.replace("[a, b]", "[{model: a, revision: v1, lora: org/l@2}, b]"))
    assert recipe.slices[0].sources[0].model == ModelRef("a", "v1", ModelRef("org/l", "2"))


def test_numbers_and_truths_as_text() -> None:
    recipe = load(
        "merge_method: linear\nseed: '7'\nparameters: {weight: '0.5', normalize: 'no'}\n"
        "slices: [{sources: [{model: a, layer_range: ['0', 4.0]}]}]\n"
    )
    assert (recipe.seed, recipe.slices[0].sources[0].layers, recipe.notes) == (7, (0, 4), ())


def test_semantics_of_a_mixture_have_no_effect() -> None:
    experts = "base_model: a\ngate_mode: random\nexperts: [{source_model: b}, {source_model: c}]\n"
    note = "<recipe>:1:1: semantics: is no key of a mixture of experts; it has no effect"
    assert load(experts, semantics="mergekit", seed=3).notes == (note,)
    assert load(experts, seed=3).seed == 3
