"""The value of a parameter for one tensor: precedence, filters, gradients, kinds and ranges."""

from __future__ import annotations

import pytest
import yaml
from recipes import legal_value, minimal_recipe

from fastmerge.errors import InvalidInput
from fastmerge.methods import REQUIRED, Parameter, all_methods
from fastmerge.recipe import Recipe, load, parts_of, resolve
from fastmerge.recipe.settings import coerce

MLP, NORM = "model.layers.1.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"


def ties(models: str, top: str = "{}") -> Recipe:
    return load(
        f"merge_method: ties\nbase_model: b\nmodels:\n  - model: a\n    parameters: {models}\nparameters: {top}\n"
    )


def value(recipe: Recipe, name: str, tensor: str = MLP, t: float = 0.0) -> object:
    parameter = next(p for p in all_methods()[recipe.method].parameters if p.name == name)
    part = parts_of(recipe, recipe.modules[0], recipe.slices[0]).of(tensor)
    return resolve(part, part.inputs.tensors[0] if parameter.per_model else None, parameter, tensor, t)


def test_precedence_source_slice_recipe_default() -> None:
    text = """
merge_method: ties
base_model: b
slices:
  - sources:
      - {model: a, layer_range: [0, 2], parameters: {weight: 1}}
      - {model: b, layer_range: [0, 2]}
    parameters: {weight: 2, density: 0.2, normalize: false}
parameters: {weight: 3, density: 0.3, lambda: 4, normalize: true}
"""
    recipe = load(text)
    assert [value(recipe, name) for name in ("weight", "density", "normalize", "lambda")] == [1, 0.2, False, 4]
    assert value(load(text.replace("lambda: 4, ", "")), "lambda") == 1


def test_the_first_filter_that_matches_wins_and_an_unmatched_level_falls_through() -> None:
    settings = "{weight: [{filter: mlp, value: 1}, {filter: layers.1., value: 2}, {filter: norm, value: 3}]}"
    recipe = ties(
        settings, "{weight: [{filter: lm_head, value: 4}, {filter: '*', value: 5}, {filter: embed, value: 6}]}"
    )
    tensors = (MLP, "model.layers.1.self_attn.q_proj.weight", NORM, "lm_head.weight", "model.embed_tokens.weight")
    assert [value(recipe, "weight", tensor) for tensor in tensors] == [1, 2, 3, 4, 5]


def test_a_required_parameter_that_no_filter_covers_is_an_error() -> None:
    recipe = ties("{weight: {filter: mlp, value: 1}}")
    assert value(recipe, "weight") == 1
    with pytest.raises(InvalidInput, match=r"models\[0\]: ties needs 'weight', and nothing sets it for model.layers.0"):
        value(recipe, "weight", NORM)


@pytest.mark.parametrize(
    ("t", "expected"), [(0, 0), (0.25, 0.5), (0.375, 0.5 * 0.5 + 0.5 * 0.3), (0.5, 0.3), (1, 1), (1 / 8, 0.25)]
)
def test_gradients_interpolate_linearly(t: float, expected: float) -> None:
    assert value(ties("{weight: [0, 0.5, 0.3, 0.7, 1]}"), "weight", t=t) == expected


@pytest.mark.parametrize("t", [0, 0.3, 1])
def test_a_gradient_of_one_value_is_constant(t: float) -> None:
    assert value(ties("{weight: {filter: mlp, value: [0.25]}}"), "weight", t=t) == 0.25


def test_gradients_of_booleans_take_an_element() -> None:
    recipe = ties("{weight: 1}", "{normalize: [true, false, true]}")
    assert [value(recipe, "normalize", t=t) for t in (0, 0.49, 0.5, 0.99, 1)] == [True, True, False, False, True]


def test_gradients_of_whole_numbers_are_cut() -> None:
    recipe = ties("{weight: 1}", "{lambda: [1, 2]}")
    part = parts_of(recipe, recipe.modules[0], recipe.slices[0]).default
    assert [resolve(part, None, Parameter("lambda", int), MLP, t) for t in (0, 0.9, 1)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("parameter", "written", "expected"),
    [
        (Parameter("p", float), "1e-8", 1e-8),
        (Parameter("p", float), "1", 1.0),
        (Parameter("p", int), "2e1", 20),
        (Parameter("p", int), "3.0", 3),
        (Parameter("p", bool), "1.0", True),
        (Parameter("p", bool), "0", False),
        (Parameter("p", bool), "off", False),
        (Parameter("p", bool), "'true'", True),
        (Parameter("p", bool), "' No '", False),
        (Parameter("p", float), "'0.5'", 0.5),
        (Parameter("p", str, choices=("x", "y")), "y", "y"),
    ],
)
def test_kinds(parameter: Parameter, written: str, expected: object) -> None:
    found = coerce(parameter, yaml.safe_load(written))
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("parameter", "written", "message"),
    [
        (Parameter("p", float), "true", "is True, expected a number"),
        (Parameter("p", float), ".nan", "is nan, expected a number"),
        (Parameter("p", float), ".inf", "is inf, expected a number"),
        (Parameter("p", float), "1e39", "is '1e39', expected a number"),
        (Parameter("p", float), "half", "is 'half', expected a number"),
        (Parameter("p", int), "1.5", "is 1.5, expected a whole number"),
        (Parameter("p", bool), "2", "is 2, expected true or false"),
        (Parameter("p", str, choices=("x", "y")), "z", "is 'z', expected one of x, y"),
        (Parameter("p", float, minimum=0, maximum=1), "-0.5", r"is -0.5, expected a number in \[0, 1\]"),
    ],
)
def test_values_of_another_kind_or_range_are_refused(parameter: Parameter, written: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        coerce(parameter, yaml.safe_load(written))


PARAMETERS = [
    pytest.param(method, parameter, id=f"{method.name}-{parameter.name}")
    for method in all_methods().values()
    for parameter in method.parameters_of(method.semantics[0])
    if parameter.name != "int8_mask"
]


@pytest.mark.parametrize(("method", "parameter"), PARAMETERS)
class TestEveryParameter:
    def test_a_value_at_the_top_level_reaches_every_tensor(self, method, parameter) -> None:
        recipe = minimal_recipe(method)
        recipe["parameters"][parameter.name] = [{"filter": "mlp", "value": legal_value(parameter)}]
        recipe["parameters"][parameter.name].append({"value": [legal_value(parameter)] * 3})
        for tensor in (MLP, NORM):
            assert value(load(recipe), parameter.name, tensor, t=0.7) == pytest.approx(legal_value(parameter))

    def test_without_a_value_it_takes_its_default_or_is_required(self, method, parameter) -> None:
        recipe = minimal_recipe(method)
        if parameter.default is not REQUIRED:
            assert value(load(recipe), parameter.name) == parameter.default
            return
        del recipe["parameters"][parameter.name]
        with pytest.raises(InvalidInput, match=f"{method.name} needs a value for '{parameter.name}'"):
            load(recipe)

    def test_a_value_out_of_range_is_located(self, method, parameter) -> None:
        wrong = [(parameter.minimum, -1), (None if parameter.saturates else parameter.maximum, 1)]
        for bound, step in wrong:
            if bound is not None:
                recipe = minimal_recipe(method)
                recipe["parameters"][parameter.name] = {"filter": "mlp", "value": [bound, bound + step]}
                with pytest.raises(InvalidInput, match=rf"parameters\.{parameter.name}\.value: is .*, expected a"):
                    load(recipe)

    def test_a_shared_parameter_of_one_model_has_no_effect(self, method, parameter) -> None:
        recipe = minimal_recipe(method)
        recipe["models"][0]["parameters"] = {parameter.name: legal_value(parameter)}
        notes = [note for note in load(recipe).notes if "is one value for all models; for one it has no effect" in note]
        assert len(notes) == (0 if parameter.per_model else 1)
