"""Names in a recipe that mean nothing here: harmless ones get a note, near misses and lost intentions are errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from ..errors import nearest
from ..methods import BLOCKS, Method, Parameter, all_methods, method_called, method_names, why_not, with_blocks
from . import mergekit_names
from .document import Findings, KeyPath
from .document_schema import (
    Keys,
    ModelItem,
    ModuleItem,
    RecipeFile,
    RuleItem,
    SliceItem,
    SourceItem,
    TokenItem,
    TokenizerItem,
)

# Keys of the top level that mergekit does not have.
_OWN_KEYS = (*BLOCKS, "rules", "missing", "semantics", "seed")


def method_of(findings: Findings, path: KeyPath, name: str) -> Method | None:
    """Return the method that the recipe names; an unknown one is reported and gives None."""
    found = method_called(name)
    if found is None:
        names = method_names()
        remedy = did_you_mean(name, names) or f"available: {', '.join(names)}"
        findings.problem(path, f"unknown merge method {name!r}", remedy)
    return found


def parameter_of(
    findings: Findings, path: KeyPath, methods: Sequence[Method | None], semantics: str | None
) -> Parameter | None:
    """Return the parameter that the last step of ``path`` names, or None after saying why it does not count.

    ``methods`` are those that may take it; None stands for one that does not exist.
    """
    name = str(path[-1])
    known = [method for method in methods if method is not None]
    own: dict[str, Parameter] = {}
    for method in reversed(known):
        profile = semantics if semantics in method.semantics else method.semantics[0]
        own |= {parameter.name: parameter for parameter in method.parameters_of(profile)}
    elsewhere = {p.name: p for method in known for p in method.parameters if p.name not in own}
    called = " and ".join(method.name for method in known)
    if name.partition(".")[0] in _OWN_KEYS:
        findings.problem(path, "is not a parameter", f"write {name.partition('.')[0]}: at the top level of the recipe")
    elif name in mergekit_names.HINTS:
        findings.note(path, "has no effect here; it does not change the result")
    elif name in own:
        if own[name].per_model or not _belongs_to_model(path):
            return own[name]
        findings.note(path, "is one value for all models; for one it has no effect")
    elif name in elsewhere:
        what = f"is a parameter of {called} only with semantics {' or '.join(elsewhere[name].semantics)}"
        findings.problem(path, what, "delete it or change semantics:")
    elif close := did_you_mean(name, own) if name not in _known_parameters() else "":
        findings.problem(path, "unknown parameter", close)
    elif len(known) == len(methods):
        if name in RecipeFile.model_fields:
            findings.note(
                path, f"is not a parameter, so it has no effect; write {name}: at the top level of the recipe"
            )
        else:
            findings.note(path, f"is not a parameter of {called}; it has no effect")
    return None


def with_blocks_of(findings: Findings, file: RecipeFile, method: Method | None) -> Method | None:
    """Return the method with the blocks of the recipe; what it cannot take is reported and left out."""
    given = [block for block in BLOCKS if getattr(file, block) is not None]
    for i, part in enumerate(file.slices or ()):
        for block in BLOCKS:
            if getattr(part, block) is not None and block not in given:
                what = f"the recipe has no {block}: that this could change for a slice"
                findings.problem(("slices", i, block), what, f"add {block}: at the top level")
    if method is None:
        return None
    refused = {block: why_not(method, block) for block in given}
    for block, reason in refused.items():
        if reason:
            takers = [name for name, other in all_methods().items() if why_not(other, block) is None]
            findings.problem((block,), reason, f"delete it, or use one of {', '.join(takers)}")
    taken = frozenset(block for block, reason in refused.items() if not reason)
    return with_blocks(method, taken) if taken else method


def block_parameter_of(findings: Findings, path: KeyPath, block: str) -> str | None:
    """Return the full name of the parameter that the last step of ``path`` names in a block, or None after a report."""
    known = [parameter.name for parameter in BLOCKS[block].parameters]
    name = f"{block}.{path[-1]}"
    if name in known:
        return name
    keys = [full.removeprefix(f"{block}.") for full in known]
    findings.problem(path, "unknown key", did_you_mean(str(path[-1]), keys) or f"{block} takes {', '.join(keys)}")
    return None


def unknown_key(findings: Findings, path: KeyPath, method_name: str) -> None:
    """Say that a key which the schema does not have does nothing, or that it cannot have been meant so."""
    name, level = str(path[-1]), _level(path[:-1])
    if name.startswith("x-"):
        return
    if level is RecipeFile and name in mergekit_names.EVOLVE_KEYS:
        findings.note(path, "is a key of mergekit-evolve; it has no effect")
    elif level is RecipeFile and name == "out_path":
        findings.note(path, "has no effect; the output folder is given to the command")
    elif level is ModelItem and name == "layer_range":
        findings.problem(path, "models: takes whole models", "use slices: with sources: to choose layers")
    elif name in _known_parameters() and "parameters" in level.model_fields:
        if name not in _taken(method_name):
            findings.note(path, f"is not a parameter of {method_name}; it has no effect")
        elif level is RecipeFile:
            findings.note(path, f"has no effect; {name} is a parameter: write it under parameters:")
        else:
            findings.problem(path, "is a parameter, and has no effect here", "write it under parameters:")
    elif close := did_you_mean(name, [*level.model_fields, *_parameters_beside(level, method_name)]):
        findings.problem(path, "unknown key", close)
    else:
        findings.note(path, "is no key of a recipe; it has no effect")


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return a question that names the choice that ``name`` nearly is; empty when there is none."""
    name = mergekit_names.RENAMED.get(name, name)
    close = nearest(name, choices)
    return f"did you mean {close!r}?" if close else ""


def _belongs_to_model(path: KeyPath) -> bool:
    return "sources" in path or any(key == "models" and isinstance(index, int) for key, index in pairwise(path))


def _level(path: KeyPath) -> type[Keys]:
    """Return what kind of mapping lies at ``path``."""
    names = [step for step in path if isinstance(step, str)]
    if not names:
        return RecipeFile
    if names[0] == "tokenizer":
        return TokenItem if len(path) > 1 else TokenizerItem
    kinds: dict[str, type[Keys]] = {
        "models": ModelItem, "sources": SourceItem, "slices": SliceItem, "rules": RuleItem,
    }  # fmt: skip
    return kinds.get(names[-1], ModuleItem)


def _parameters_beside(level: type[Keys], method_name: str) -> Iterable[str]:
    """Return the parameters that a model or slice may have been meant to have, written beside ``parameters:``."""
    return _taken(method_name) if "parameters" in level.model_fields and level is not RecipeFile else ()


def _taken(method_name: str) -> set[str]:
    method = method_called(method_name)
    own = {p.name for p in method.parameters} if method else set()
    return own | mergekit_names.METHODS.get(method_name, frozenset())


def _known_parameters() -> frozenset[str]:
    return mergekit_names.PARAMETERS.union(p.name for method in all_methods().values() for p in method.parameters)
