"""mergekit YAML -> Recipe, with every problem reported at once."""

from __future__ import annotations

import copy
import os
from typing import Any

from pydantic import ValidationError

from ..errors import InvalidInput
from ..methods import Method
from .checks import check
from .document import Findings, Path, read_document
from .document_schema import ModelItem, RecipeFile, SourceItem
from .mergekit_names import OTHER_FILES
from .names import method_of, parameter_of, unknown_key
from .settings import read_setting
from .types import Parameters, Recipe, SliceSpec, SourceSpec


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
        findings.problem((), f"is {type(data).__name__}, expected keys and values", "write merge_method: and models:")
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
    return recipe


def _validate(findings: Findings, data: dict[str, Any]) -> RecipeFile:
    """Return the typed file. Wrong keys are reported and left out; stop if nothing typed is left."""
    try:
        return RecipeFile.model_validate(data)
    except ValidationError as error:
        faults = error.errors()
    rest = copy.deepcopy(data)
    for fault in faults:
        path: Path = tuple(fault["loc"])
        if fault["type"] == "extra_forbidden":
            unknown_key(findings, path, str(data.get("merge_method")))
        elif fault["type"] == "missing":
            findings.problem(path[:-1], f"{path[-1]} is missing", f"add {path[-1]}:")
        else:
            own = fault.get("ctx", {}).get("error")
            findings.problem(path, str(own) if own else f"{fault['msg']}, got {fault['input']!r}")
        _remove(rest, path)
    try:
        return RecipeFile.model_validate(rest)
    except ValidationError:
        raise InvalidInput(findings.problems) from None


def _remove(data: Any, path: Path) -> None:
    """Delete what ``path`` leads to, if it is the value of a key."""
    *parents, last = path
    for step in parents:
        data = data[step]
    if isinstance(data, dict):
        data.pop(last, None)


def _assemble(findings: Findings, file: RecipeFile, method: Method | None) -> Recipe:
    document = findings.document

    def parameters(path: Path, table: dict[str, Any]) -> Parameters:
        settings = {}
        for name, value in table.items():
            here = (*path, "parameters", name)
            if parameter_of(findings, here, file.merge_method, method):
                settings[name] = read_setting(findings, here, value)
        return settings

    def source(path: Path, item: ModelItem | SourceItem) -> SourceSpec:
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
            sources = tuple(source((*path, "sources", j), item) for j, item in enumerate(part.sources))
            slices.append(SliceSpec(sources, part.base_model, parameters(path, part.parameters), document.where(path)))
    if file.tokenizer and file.tokenizer_source:
        findings.problem(("tokenizer_source",), "both tokenizer and tokenizer_source are given", "give one of them")
    return Recipe(
        path=document.name,
        text=document.text,
        method=file.merge_method,
        slices=tuple(slices),
        base=file.base_model,
        parameters=parameters((), file.parameters),
        dtype=file.dtype,
        out_dtype=file.out_dtype,
        tokenizer=file.tokenizer.source if file.tokenizer else file.tokenizer_source,
        chat_template=file.chat_template,
        semantics=file.semantics,
        seed=file.seed or 0,
        notes=tuple(findings.notes),
    )
