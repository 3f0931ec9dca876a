"""The JSON schema of recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from recipes import minimal_recipe

from fastmerge.methods import all_methods
from fastmerge.recipe import load, schema

jsonschema = pytest.importorskip("jsonschema")

DATA = Path(__file__).parents[1] / "data" / "recipes"


@pytest.fixture(scope="module")
def validate():
    """Functions that tell whether a document fits the schema, and the strict one."""
    made = [jsonschema.Draft202012Validator(schema(strict=strict)) for strict in (False, True)]
    for validator in made:
        validator.check_schema(validator.schema)
    return made


def test_recipes_fit(validate) -> None:
    loose, strict = validate
    for file in DATA.glob("*.yml"):
        document = yaml.safe_load(file.read_text())
        loose.validate(document)
        noted = any("no effect" in note for note in load(file).notes if "int8_mask" not in note)
        assert strict.is_valid(document) is not noted, file


def test_every_recipe_that_mergekit_merges_fits(validate, shared: Path) -> None:
    files = [file for folder in ("main", "synthetic") for file in sorted((shared / "recipes" / folder).glob("*.yml"))]
    for file in files:
        for document in yaml.safe_load_all(file.read_text()):
            # Methods of mergekit that are not offered yet are no values of merge_method.
            if document is not None and document["merge_method"] in all_methods():
                validate[0].validate(document)


@pytest.mark.parametrize("method", all_methods().values(), ids=lambda method: method.name)
def test_every_method_is_known(validate, method) -> None:
    recipe = minimal_recipe(method)
    validate[1].validate(recipe)
    for name in recipe["parameters"]:
        assert validate[1].schema["$defs"]["Parameters"]["properties"][name]["description"]


BASE = {"merge_method": "linear", "models": ["a", {"model": "b", "parameters": {"weight": 0.5}}]}
WRONG = [
    {"merge_method": "linaer"},
    {"models": [{"weight": 1}]},
    {"models": [{"model": "a", "parameters": {"weight": {"filter": "x"}}}]},
    {"dtype": "bf17"},
    {"missing": "never"},
    {"rules": [{"merge_method": "nobody"}]},
    {"slices": [{"sources": [{"model": "a", "layer_range": [0]}]}]},
    {"boost": {"bta": 1}},
]


@pytest.mark.parametrize("change", WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_does_not_fit(validate, change) -> None:
    validate[1].validate(BASE)
    assert not validate[0].is_valid(BASE | change)


@pytest.mark.parametrize(
    "change", [{"dype": "float16"}, {"parameters": {"wieght": 1}}, {"models": [{"model": "a", "x": 1}]}]
)
def test_only_the_strict_one_forbids_other_keys(validate, change) -> None:
    assert validate[0].is_valid(BASE | change) and not validate[1].is_valid(BASE | change)


@pytest.mark.parametrize(
    "change",
    [
        {"x-anchor": {"any": 1}, "description": "text", "tags": ["a"], "license": "mit", "name": "A"},
        {"rules": [{"glob": "*.mlp.*", "source": "base"}, {"filter": "norm", "parameters": {"weight": [0, 1]}}]},
        {"modules": {"default": {"models": ["a"]}}},
        {"parameters": {"weight": [{"regex": "q_proj", "value": [0.1, 0.2]}, {"value": 1}, 0.5]}},
        {"tokenizer": {"source": "union", "tokens": {"<a>": {"source": "m", "force": True}}}, "missing": "merge"},
        {"dtype": "torch.bfloat16", "parameters": None, "seed": 3},
    ],
)
def test_other_forms_fit_the_strict_one(validate, change) -> None:
    validate[1].validate(BASE | change)
