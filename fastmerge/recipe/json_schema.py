"""The JSON schema of recipes, for editors and other programs."""

from __future__ import annotations

from typing import Any

from ..methods import BLOCKS, Parameter, all_methods
from .document_schema import CARD_KEYS, RecipeFile
from .mergekit_names import PARAMETERS
from .references import DTYPES

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_LEVELS = ("ModelItem", "SourceItem", "SliceItem", "ModuleItem", "RuleItem")


def schema(*, strict: bool = False) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a document of a recipe.

    Args:
        strict: forbid what is only noted when a recipe is loaded: keys and parameters that have no effect.
    """
    result = RecipeFile.model_json_schema()
    definitions = result["$defs"]
    levels = [result, *definitions.values()]
    for level in levels:
        if level.get("type") == "object":
            level["additionalProperties"] = not strict
            level["patternProperties"] = {"^x-": True}
    for name in ("ModelItem", "SourceItem"):
        item = {"$ref": f"#/$defs/{name}"}
        _replace_items(result, item, {"anyOf": [{"type": "string"}, item]})
    whole = {"type": ["integer", "number", "string"]}
    layers = definitions["SourceItem"]["properties"]["layer_range"]
    layers.pop("anyOf", None)
    layers |= {"type": ["array", "null"], "items": whole, "minItems": 2, "maxItems": 2}
    definitions["Value"] = _value()
    definitions["Parameters"] = _parameters(strict)
    for level in (result, *(definitions[name] for name in _LEVELS)):
        level["properties"]["parameters"] = {"anyOf": [{"$ref": "#/$defs/Parameters"}, {"type": "null"}]}
    for level in (result, definitions["SliceItem"]):
        for block in BLOCKS.values():
            own = {p.name.partition(".")[2]: _parameter(p) for p in block.parameters}
            level["properties"][block.name] = {"type": "object", "properties": own, "additionalProperties": False}
    for level in (result, definitions["SliceItem"], definitions["RuleItem"]):
        level["properties"]["merge_method"] = {"enum": list(all_methods())}
    names = {"enum": [*DTYPES, *(f"torch.{name}" for name in DTYPES), None]}
    seed = {"type": ["integer", "string", "null"], "description": "seed of the random methods"}
    result["properties"] |= {"dtype": names, "out_dtype": names, "seed": seed} | dict.fromkeys(CARD_KEYS, True)
    return {"$schema": _DIALECT, **result, "title": "fastmerge recipe"}


def _replace_items(level: Any, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Replace what the items of lists must be: models may be given by their names alone."""
    if isinstance(level, dict):
        if level.get("items") == old:
            level["items"] = new
        for inner in level.values():
            _replace_items(inner, old, new)
    elif isinstance(level, list):
        for inner in level:
            _replace_items(inner, old, new)


def _parameters(strict: bool) -> dict[str, Any]:
    known: dict[str, Parameter] = {}
    takers: dict[str, list[str]] = {}
    for method in all_methods().values():
        for parameter in method.parameters:
            known.setdefault(parameter.name, parameter)
            takers.setdefault(parameter.name, []).append(method.name)
    properties = {name: _parameter(parameter, takers[name]) for name, parameter in sorted(known.items())}
    others = {name: {"$ref": "#/$defs/Value"} for name in sorted(PARAMETERS - properties.keys())}
    return {"type": "object", "properties": properties | others, "additionalProperties": not strict}


def _parameter(parameter: Parameter, takers: list[str] | None = None) -> dict[str, Any]:
    doc = f"{parameter.doc}; {parameter.expected}" if parameter.doc else parameter.expected
    doc += f" ({', '.join(takers)})" if takers else ""
    return {"$ref": "#/$defs/Value", "description": doc}


def _value() -> dict[str, Any]:
    scalar = {"type": ["number", "boolean", "string"]}
    gradient = {"type": "array", "items": scalar, "minItems": 1}
    text = {"type": ["string", "null"]}
    conditional = {
        "type": "object",
        "properties": {"filter": text, "glob": text, "regex": text, "value": {"anyOf": [scalar, gradient]}},
        "required": ["value"],
    }
    branches = {"type": "array", "items": {"anyOf": [conditional, scalar, gradient]}, "minItems": 1}
    return {
        "description": "a number, a list of numbers (a gradient over the layers), {filter, value}, or a list of those",
        "anyOf": [scalar, gradient, conditional, branches],
    }
