"""Recipes that are refused: every problem at once, each with its place and a remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from recipes import minimal_recipe

from fastmerge.errors import InvalidInput
from fastmerge.methods import all_methods
from fastmerge.recipe import load, mergekit_names

METHODS = list(all_methods().values())

# Parts of the message for every recipe of the folder ``invalid``.
INVALID = {
    "002_cabs": [":14:1: merge_method: unknown merge method 'cabs'"],
    "003_core_space": [":6:1: merge_method: unknown merge method 'core_space' (available: "],
    "005_dare_linear": [":6:2: is not valid YAML", "delete this line; a recipe does not hold notebook commands"],
    "007_dare_merge": ["'dare_merge'", "neither models nor slices", "'auto' is not a dtype"],
    "008_dare_ties": ["neither models nor slices"],
    "009_dare_ties": [":8:7: models[0].parameters.dare: is no parameter", ":14:7: models[1].parameters.dare: is no"],
    "011_encoder_decoder_weighted": ["unknown merge method 'encoder_decoder_weighted'"],
    "012_evolve": [":1: genome: this is a configuration of mergekit-evolve"],
    "013_linear": [
        ":3:5: models[0]: org/model-a: linear needs",
    ],
    "014_lrp": ["unknown merge method 'lrp'"],
    "017_nuslerp": [":4:10: is not valid YAML"],
    "018_nuslerp": ["nuslerp needs a value for 'weight'"],
    "019_passthrough": [":14:1: is not valid YAML", "check the indentation"],
    "020_placeholder": ["unknown merge method '<method>'", "'<dtype>' is not a dtype"],
    "021_ranked_ties": ["unknown merge method 'ranked_ties'"],
    "022_sample_ties": ["unknown merge method 'sample_ties'"],
    "023_slerp": ["neither models nor slices are given"],
    "026_slerp": ["the base model org/model-a is not one of the sources"],
    "029_slerp": ["slerp needs a base model (add base_model:)"],
    "030_slerp": [
        "org/model-a has no layer_range",
        "slerp takes 1 model(s) besides the base, found 3",
        "value for 't'",
    ],
    "031_slerp": ["slerp needs a base model"],
    "032_task_arithmetic": [":5:9: slices[0].sources[1]: org/model-a: task_arithmetic needs a value for 'weight'"],
    "035_ties": ["the base model org/model-a is not one of the sources"],
    "037_ties_merge": ["unknown merge method 'ties_merge'", "neither models nor slices"],
}


def refusal(source) -> str:
    with pytest.raises(InvalidInput) as caught:
        load(source)
    return str(caught.value)


def test_invalid_recipes_from_the_wild(shared: Path) -> None:
    # That one is a mixture of experts with a key too many.
    assert {file.stem for file in (shared / "recipes" / "invalid").glob("*.yml")} == {*INVALID, "015_moe"}
    for name, parts in INVALID.items():
        message = refusal(shared / "recipes" / "invalid" / f"{name}.yml")
        for part in parts:
            assert part in message, f"{name}: {message}"


def test_mixtures_of_experts(shared: Path) -> None:
    without_prompts = {"009_moe", "010_moe", "014_moe"}
    for file in [*(shared / "recipes" / "moe").glob("*.yml"), shared / "recipes" / "invalid" / "015_moe.yml"]:
        if file.stem in without_prompts:
            assert "has no positive_prompts, of which gate_mode hidden makes its router" in refusal(file)
        elif file.stem == "011_moe":
            assert ":4:1: experts: is '...'" in refusal(file)
        else:
            recipe = load(file)
            assert recipe.mixture is not None
            assert len(recipe.slices) == 1 + len(recipe.mixture.experts) + len(recipe.mixture.shared)


LINEAR = "merge_method: linear\nmodels: [a, b]\nparameters: {weight: 1}\n"
SLICE = "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 2]}]\n"

MESSAGES = {
    # Keys
    LINEAR + "outdtype: float16\n": "<recipe>:4:1: outdtype: unknown key (did you mean 'out_dtype'?)",
    LINEAR.replace(
        "[a, b]", "[{model: a, weight: 1}, b]"
    ): "<recipe>:2:21: models[0].weight: is a parameter, and has no effect here (write it under parameters:)",
    LINEAR + "merge_method: ties\n": "<recipe>:4:1: merge_method: the key is there twice, first in line 1 (keep one)",
    LINEAR + "modules: {x: {models: [a]}}\n": "<recipe>:1:1: both models and modules are given (give one of them)",
    LINEAR.replace(
        "models: [a, b]", "modules: {x: {models: [a, b]}}"
    ): "<recipe>:2:11: modules.x: which tensors the module 'x' has is not known (add filter:, glob: or regex:",
    LINEAR + "slices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n": "both models and slices are given",
    LINEAR.replace(
        "[a, b]", "[{model: a, layer_range: [0, 1]}, b]"
    ): "<recipe>:2:21: models[0].layer_range: models: takes whole models (use slices: with sources: to choose layers)",
    LINEAR.replace("[a, b]", "[{weight: 1}, b]"): "models[0]: model is missing (add model:)",
    LINEAR.replace("[a, b]", "[7, b]"): "<recipe>:2:10: models[0]: is 7, expected names and values",
    LINEAR.replace("[a, b]", "[{model: 7}, b]"): "<recipe>:2:11: models[0].model: 7 is not a model; expected the path",
    LINEAR.replace("linear", "linaer"): "unknown merge method 'linaer' (did you mean 'linear'?)",
    SLICE + "  merge_method: slrp\n": "<recipe>:4:3: slices[0].merge_method: unknown merge method 'slrp' (did you mean",
    SLICE + "  merge_method: slerp\n": "<recipe>:3:3: slices[0]: slerp needs a base model",
    "models: [a]\n": "<recipe>:1:1: merge_method is missing (add merge_method:)",
    # Words
    LINEAR + "dtype: q4_k_m\n": "<recipe>:4:1: dtype: 'q4_k_m' is not a dtype for merged weights; expected bfloat16, ",
    LINEAR + "out_dtype: torch.int64\n": "<recipe>:4:1: out_dtype: 'torch.int64' is not a dtype",
    LINEAR
    + "tokenizer: {tokens: {x: {source: {kind: one}}}}\n": "tokens.x.source: {'kind': 'one'} is no source of a token",
    LINEAR + "tokenizer: {source: a}\ntokenizer_source: a\n": "both tokenizer and tokenizer_source are given",
    LINEAR + "seed: -1\n": "<recipe>:4:1: seed: is -1, expected at least 0",
    LINEAR + "seed: 18446744073709551616\n": "<recipe>:4:1: seed: is 18446744073709551616, expected less than "
    "18446744073709551616",
    LINEAR + "dtype: bfloat16\nkeep_float32: norm\n": "<recipe>:5:1: keep_float32: is 'norm', expected true, false, or "
    "a list of parts of tensor names",
    LINEAR + "tokenizer: {pad_to_multiple_of: 0}\n": "tokenizer.pad_to_multiple_of: is 0, expected at least 1",
    LINEAR + "semantics: fusionbench\n": "linear does not have the semantics 'fusionbench' (available: mergekit)",
    # Parameters
    LINEAR.replace(
        "weight: 1", "wieght: 1"
    ): "<recipe>:3:14: parameters.wieght: unknown parameter (did you mean 'weight'?)",
    LINEAR.replace(
        "weight: 1", "weight: null"
    ): "<recipe>:3:14: parameters.weight: is None, expected a number, a list of",
    LINEAR.replace("weight: 1", "weight: []"): "parameters.weight: is an empty list",
    LINEAR.replace("weight: 1", "weight: [1, [2]]"): "parameters.weight: is [1, [2]], expected a number",
    LINEAR.replace("weight: 1", "weight: {filter: x}"): "parameters.weight: has a filter without a value (add value:)",
    LINEAR.replace(
        "weight: 1", "weight: {filter: 7, value: 1}"
    ): "weight.filter: is 7, expected a part of a tensor name",
    LINEAR.replace("weight: 1", "weight: high"): "parameters.weight: is 'high', expected a number",
    LINEAR.replace("weight: 1", "boost: {beta: 1}"): "parameters.boost: is not a parameter (write boost: at",
    LINEAR.replace("weight: 1", "weight: {fliter: x, value: 1}"): "weight.fliter: unknown key; a conditional value has",
    LINEAR.replace(
        "weight: 1", "weight: {glob: x, regex: y, value: 1}"
    ): "glob and regex are given; expected one of them",
    LINEAR.replace("weight: 1", "weight: {regex: '(', value: 1}"): "weight.regex: '(' is no regular expression",
    # Models and layers
    LINEAR.replace("[a, b]", "[a+b+c]"): "models[0].model: 'a+b+c' is not a model; expected model, model@revision or",
    "merge_method: passthrough\nbase_model: b\nmodels: [a]\n": "passthrough takes 1 model(s), found 2: a, b (delete "
    "base_model: the method has none)",
    "merge_method: slerp\nbase_model: b\nmodels: [b]\n": "slerp takes 1 model(s) besides the base, found 0: none",
    SLICE.replace("0, 2", "2, 2"): "<recipe>:3:13: slices[0].sources[0]: layer_range is [2, 2], expected [first, end]",
    SLICE.replace("0, 2", "-1, 2"): "layer_range is [-1, 2], expected [first, end] with 0 <= first < end",
    SLICE.replace("0, 2", "0, 2.5"): "layer_range[1]: is 2.5, expected a whole number",
    SLICE.replace("0, 2", "2"): "slices[0].sources[0].layer_range: is [2], expected a list of at least 2",
    SLICE.replace("0, 2", "0, 2, 4"): "slices[0].sources[0].layer_range: is [0, 2, 4], expected a list of at most 2",
    SLICE
    + "- sources: [a]\n": "<recipe>:4:13: slices[1].sources[0]: a has no layer_range (add layer_range: [first, end])",
    "merge_method: slerp\nbase_model: a\nparameters: {t: 1}\nslices:\n- sources:\n"
    "  - {model: a, layer_range: [0, 2]}\n  - {model: b, layer_range: [0, 3]}\n": "<recipe>:5:3: slices[0]: the "
    "sources have different numbers of layers: [0, 2], [0, 3] (make them equal)",
    # Files
    "- a\n- b\n": "<recipe>:1:1: is ['a', 'b'], expected keys and values",
    "a: &x [*x]\n": "expands to more than 200000 YAML nodes",
    "a: &a [1, 1]\n"
    + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
    ): "expands to more than 200000 YAML nodes",
    "a: !!python/object/apply:os.getcwd []\n": "<recipe>:1:4: is not valid YAML: could not determine a constructor",
    "a:\n\tb: 1\n": "<recipe>:2:1: is not valid YAML: while scanning for the next token found character",
    "a: " + "[" * 500 + "]" * 500 + "\n": "is nested too deeply",
    "a: " + "9" * 5000 + "\n": "is not valid YAML",
}


@pytest.mark.parametrize(("text", "part"), MESSAGES.items(), ids=range(len(MESSAGES)))
def test_messages(text: str, part: str) -> None:
    assert part in refusal(text)


PLACES = {
    "# a\nmerge_method: slerp\nmodels: [a, b]\n": "<recipe>:2:1: merge_method: slerp needs a base model",
    LINEAR + "rules: [{filter: x, merge_method: ties}]\n": "<recipe>:4:9: rules[0]: ties needs a base model",
    LINEAR
    + "rules: [{filter: x, merge_method: ties}]\nbase_model: a\nsemantics: magic\n": "<recipe>:6:1: semantics: linear",
}


@pytest.mark.parametrize("text", PLACES)
def test_what_the_recipe_lacks_has_a_place_too(text: str) -> None:
    assert PLACES[text] in refusal(text)


def test_a_recipe_in_python_has_no_lines() -> None:
    with pytest.raises(InvalidInput, match=r"^<recipe>: merge_method: slerp needs a base"):
        load({"merge_method": "slerp", "models": [{"model": "a"}, {"model": "b"}], "parameters": {"t": 0.5}})


def test_all_problems_come_at_once() -> None:
    message = refusal("""\
merge_method: ties
base_model: b
models:
  - model: a
    parameters: {weight: 1, densty: 0.5}
  - model: c
    parameters: {weight: [1, high], density: [0.5, -1.5]}
  - model: c
    weights: 1
dtype: bf16
tokenizer_source: union
""")
    assert re.findall(r"<recipe>:(\d+:\d+): (\S+): ", message) == [
        ("9:5", "models[2].weights"),
        ("10:1", "dtype"),
        ("5:29", "models[0].parameters.densty"),
        ("8:5", "models[2]"),
        ("7:18", "models[1].parameters.weight"),
        ("7:37", "models[1].parameters.density"),
    ]


@pytest.mark.parametrize("text", ["\n", LINEAR + "seed: 1\nseed: 2\n"])
def test_what_is_no_mistake_of_yaml_is_said_alone(text: str) -> None:
    assert "YAML" not in refusal(text)


def test_a_seed_from_outside_is_not_in_the_recipe() -> None:
    with pytest.raises(InvalidInput) as caught:
        load(LINEAR, seed=-1)
    assert str(caught.value) == "seed: is -1, expected at least 0"


def test_a_parameter_of_another_profile_is_refused() -> None:
    text = "merge_method: ties\nbase_model: b\nmodels: [a]\nparameters: {weight: 1, normalize: true}\nsemantics: peft\n"
    assert "parameters.normalize: is a parameter of ties only with semantics mergekit" in refusal(text)


def test_every_method_and_parameter_of_mergekit_is_known() -> None:
    for name, parameters in mergekit_names.METHODS.items():
        assert parameters <= {parameter.name for parameter in all_methods()[name].parameters_of("mergekit")}


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert f"{tmp_path / 'no.yml'}: cannot read the recipe: No such file" in refusal(tmp_path / "no.yml")
    assert "cannot read the recipe: Is a directory" in refusal(str(tmp_path))
    (tmp_path / "recipe.yml").write_bytes(b"merge_method: \xff\xfe")
    assert "recipe.yml: is not UTF-8 text" in refusal(tmp_path / "recipe.yml")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
class TestEveryMethod:
    def test_a_misspelt_name_is_corrected(self, method) -> None:
        misspelt = method.name.replace("a", "", len(method.name) > 3) + "_"
        recipe = minimal_recipe(method) | {"merge_method": misspelt}
        assert f"did you mean '{method.name}'?" in refusal(recipe)

    def test_a_misspelt_parameter_is_corrected(self, method) -> None:
        for parameter in method.parameters_of(method.semantics[0]):
            if len(parameter.name) > 2:
                recipe = minimal_recipe(method)
                recipe["parameters"][parameter.name + "s"] = 1
                assert f"unknown parameter (did you mean '{parameter.name}'?)" in refusal(recipe)

    def test_too_few_and_too_many_models_are_counted(self, method) -> None:
        least, most = method.inputs
        for count in (least - 1, None if most is None else most + 1):
            if count:
                assert re.search(
                    rf"{method.name} takes .* model.*, found {count}: ", refusal(minimal_recipe(method, count))
                )

    def test_a_base_that_is_needed_is_asked_for(self, method) -> None:
        recipe = minimal_recipe(method)
        recipe.pop("base_model", None)
        if method.base == "required":
            assert f"{method.name} needs a base model (add base_model:)" in refusal(recipe)
        else:
            load(recipe)
