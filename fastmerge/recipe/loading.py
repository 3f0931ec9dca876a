"""mergekit YAML -> Recipe, with every problem reported at once."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from ..errors import InvalidInput, Problem
from .assembling import Assembly
from .checks import check, notes
from .document import Document, Findings, KeyPath, read_document
from .document_schema import CARD_KEYS, RecipeFile
from .faults import report, said
from .mergekit_names import OTHER_FILES
from .mixtures import is_mixture, load_mixture
from .names import unknown_key
from .types import Recipe

_INDEPENDENT = (
    "dtype", "out_dtype", "tokenizer", "tokenizer_source", "chat_template", "semantics", "seed", "boost", "lines",
    "missing", "integers", "keep_float32", "names", "config_source",
)  # fmt: skip


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
    return load_document(read_document(source), semantics=semantics, seed=seed)


def load_document(document: Document, *, semantics: str | None = None, seed: int | None = None) -> Recipe:
    """As ``load``, of a document that is parsed."""
    findings = Findings(document)
    data = document.data
    if not isinstance(data, dict):
        findings.problem((), f"is {data!r:.40}, expected keys and values", "write merge_method: and models:")
        findings.stop()
    for key, meaning in OTHER_FILES.items():
        if key in data:
            findings.problem((key,), f"this is {meaning}; it is not supported", "give a recipe of models or slices")
    findings.stop()
    overrides = {key: value for key, value in (("semantics", semantics), ("seed", seed)) if value is not None}
    keys = {key: value for key, value in data.items() if key not in CARD_KEYS} | overrides
    if is_mixture(data):
        mixture = load_mixture(findings, keys, _card(data))
        findings.stop()
        return replace(mixture, notes=tuple(dict.fromkeys(findings.notes)))
    file = _validate(findings, keys, overrides)
    recipe = Assembly(findings, file).recipe(_card(data))
    findings.problems += check(recipe)
    findings.stop()
    return replace(recipe, notes=tuple(dict.fromkeys((*findings.notes, *notes(recipe)))))


def _card(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key in (*CARD_KEYS, "name") and value is not None}


def _validate(findings: Findings, data: Mapping[str, Any], overrides: Mapping[str, Any]) -> RecipeFile:
    """Return the typed file. Wrong keys are reported and left out; stop if nothing typed is left."""
    try:
        return RecipeFile.model_validate(data)
    except ValidationError as error:
        faults = error.errors()
    rest = copy.deepcopy(dict(data))
    for fault in faults:
        path: KeyPath = fault["loc"]
        if fault["type"] == "extra_forbidden":
            unknown_key(findings, path, str(data.get("merge_method")))
        elif path and path[0] in overrides:  # it is not in the document
            findings.problems.append(Problem(str(path[0]), said(fault)))
        else:
            report(findings, fault)
        # Without these the rest can still be checked; a fault in the models ends here.
        if fault["type"] == "extra_forbidden":
            _remove(rest, path)
        elif path and path[0] in _INDEPENDENT:
            rest.pop(path[0], None)
    try:
        return RecipeFile.model_validate(rest)
    except ValidationError:
        raise InvalidInput(findings.problems) from None


def _remove(data: Any, path: KeyPath) -> None:
    """Remove the value at ``path``, where it has not gone with what it lay in."""
    for step in path[:-1]:
        if isinstance(data, dict) and step not in data:
            return
        data = data[step]
    data.pop(path[-1], None)
