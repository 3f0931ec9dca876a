"""mergekit YAML -> Recipe, with every problem reported at once."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from ..errors import InvalidInput
from ..methods import BLOCKS, Method, get_method
from .checks import check
from .document import Findings, KeyPath, read_document
from .document_schema import ModelItem, RecipeFile, SliceItem, SourceItem
from .mergekit_names import OTHER_FILES
from .names import block_parameter_of, method_of, parameter_of, unknown_key, with_blocks_of
from .resolving import inputs_of
from .settings import read_setting
from .types import Parameters, Recipe, SliceSpec, SourceSpec

_INDEPENDENT = (
    "dtype", "out_dtype", "tokenizer", "tokenizer_source", "chat_template", "semantics", "seed", "boost", "lines",
)  # fmt: skip

# What pydantic calls by the names of Python.
_EXPECTED = {
    "dict_type": "names and values",
    "model_type": "names and values",
    "list_type": "a list",
    "string_type": "text",
}


def load(
    source: str | os.PathLike[str] | dict[str, Any], *, semantics: str | None = None, seed: int | None = None
) -> Recipe:
    """Read a recipe and check everything that can be checked without its models.

    Args:
        source:    path of a YAML file, YAML text (it contains a newline), or a dict.
        semantics: replaces the recipe's own.
        seed:      replaces the recipe's own.
    Raises:
        InvalidInput: all problems that were found, each with file, line, key and remedy.
    """
    findings = Findings(read_document(source))
    data = findings.document.data
    if not isinstance(data, dict):
        findings.problem((), f"is a {type(data).__name__}, expected keys and values", "write merge_method: and models:")
        findings.stop()
    for key, meaning in OTHER_FILES.items():
        if key in data:
            findings.problem((key,), f"this is {meaning}; it is not supported", "give a recipe of models or slices")
    findings.stop()
    overrides = {"semantics": semantics, "seed": seed}
    file = _validate(findings, data | {key: value for key, value in overrides.items() if value is not None})
    method = method_of(findings, file.merge_method)
    recipe = _assemble(findings, file, method)
    findings.problems += check(recipe)
    findings.stop()
    return replace(recipe, notes=(*findings.notes, *_notes(recipe, get_method(recipe.method))))


def _notes(recipe: Recipe, method: Method) -> Iterator[str]:
    """Yield what mergekit does without saying so, once the recipe is sound."""
    for slice_ in recipe.slices:
        inputs = inputs_of(slice_, method, recipe)
        if inputs.base and inputs.base.parameters:
            yield f"{inputs.base.where}: is the base model; its own parameters have no effect"
        for source in inputs.tensors[len(slice_.sources) :]:
            yield f"{recipe.path}: base_model {source.model} is one more input: {method.name} has no base"


def _validate(findings: Findings, data: dict[str, Any]) -> RecipeFile:
    """Return the typed file. Wrong keys are reported and left out; stop if nothing typed is left."""
    try:
        return RecipeFile.model_validate(data)
    except ValidationError as error:
        faults = error.errors()
    rest = copy.deepcopy(data)
    for fault in faults:
        path: KeyPath = fault["loc"]
        if fault["type"] == "extra_forbidden":
            unknown_key(findings, path, str(data.get("merge_method")))
        elif fault["type"] == "missing":
            findings.problem(path[:-1], f"{path[-1]} is missing", f"add {path[-1]}:")
        else:
            own, value = fault.get("ctx", {}).get("error"), repr(fault["input"])
            expected = _EXPECTED.get(fault["type"])
            plain = f"is {value}, expected {expected}" if expected else f"{fault['msg']}, got {value}"
            findings.problem(path, str(own) if own else plain)
        # Without these the rest can still be checked; a fault in the models ends here.
        if fault["type"] == "extra_forbidden":
            _remove(rest, path)
        elif path[0] in _INDEPENDENT:
            rest.pop(path[0], None)
    try:
        return RecipeFile.model_validate(rest)
    except ValidationError:
        raise InvalidInput(findings.problems) from None


def _remove(data: Any, path: KeyPath) -> None:
    for step in path[:-1]:
        data = data[step]
    data.pop(path[-1], None)


def _assemble(findings: Findings, file: RecipeFile, method: Method | None) -> Recipe:
    document = findings.document

    def parameters(path: KeyPath, table: dict[str, Any]) -> Parameters:
        settings = {}
        for name, value in table.items():
            here = (*path, "parameters", name)
            if parameter_of(findings, here, file, method):
                settings[name] = read_setting(findings, here, value)
        return settings

    def settings_of(path: KeyPath, item: RecipeFile | SliceItem) -> Parameters:
        settings = dict(parameters(path, item.parameters))
        for block in BLOCKS:
            for key, value in (getattr(item, block) or {}).items():
                here = (*path, block, key)
                if name := block_parameter_of(findings, here, block):
                    settings[name] = read_setting(findings, here, value)
        return settings

    def source(path: KeyPath, item: ModelItem | SourceItem) -> SourceSpec:
        layers = getattr(item, "layer_range", None)
        return SourceSpec(
            item.model, layers and (layers[0], layers[1]), parameters(path, item.parameters), document.where(path)
        )

    slices: list[SliceSpec] = []
    if bool(file.models) == bool(file.slices):
        what = "both models and slices are given" if file.models else "neither models nor slices are given"
        findings.problem((), what, "give one of them")
    elif file.models:
        sources = tuple(source(("models", i), item) for i, item in enumerate(file.models))
        slices = [SliceSpec(sources, where=document.where(("models",)))]
    else:
        for i, part in enumerate(file.slices or ()):
            path = ("slices", i)
            if part.residual_weight is not None:
                findings.note((*path, "residual_weight"), "has no effect, here and in mergekit")
            sources = tuple(source((*path, "sources", j), item) for j, item in enumerate(part.sources))
            slices.append(SliceSpec(sources, part.base_model, settings_of(path, part), document.where(path)))
    extended = with_blocks_of(findings, file, method)
    if file.tokenizer and file.tokenizer_source:
        findings.problem(("tokenizer_source",), "both tokenizer and tokenizer_source are given", "give one of them")
    return Recipe(
        path=document.name,
        text=document.text,
        method=extended.name if extended else file.merge_method,
        slices=tuple(slices),
        base=file.base_model,
        parameters=settings_of((), file),
        dtype=file.dtype,
        out_dtype=file.out_dtype,
        tokenizer=file.tokenizer.source if file.tokenizer else file.tokenizer_source,
        chat_template=file.chat_template,
        semantics=file.semantics,
        seed=file.seed or 0,
    )
