"""Keys and parameters that a recipe should not have: harmless ones get a note, others an error with a remedy."""

from __future__ import annotations

from difflib import get_close_matches

from ..methods import BLOCKS, Method, Parameter, all_methods, why_not, with_blocks
from . import mergekit_names
from .document import Findings, KeyPath
from .document_schema import Keys, ModelItem, RecipeFile, SliceItem, SourceItem, TokenizerItem


def method_of(findings: Findings, name: str) -> Method | None:
    """Return the method that the recipe names; an unknown one is reported and gives None."""
    methods = all_methods()
    if name in methods:
        return methods[name]
    what = f"unknown merge method {name!r}"
    if name in mergekit_names.METHODS:
        what = f"the method {name!r} of mergekit is not available yet"
    close = _did_you_mean(name, [*methods, *mergekit_names.METHODS])
    findings.problem(("merge_method",), what, f"{close} available: {', '.join(methods)}".lstrip())
    return None


def parameter_of(findings: Findings, path: KeyPath, file: RecipeFile, method: Method | None) -> Parameter | None:
    """Return the parameter that the last step of ``path`` names, or None after saying why it does not count."""
    name, method_name = str(path[-1]), file.merge_method
    every = {parameter.name: parameter for parameter in method.parameters} if method else {}
    own = {p.name: p for p in method.parameters_of(file.semantics or method.semantics[0])} if method else {}
    if name in mergekit_names.HINTS:
        findings.note(path, "has no effect here; it does not change the result")
    elif name in own:
        if own[name].per_model or not _belongs_to_model(path):
            return own[name]
        findings.problem(path, "is one value for all models", "move it to the parameters of the slice or the recipe")
    elif name in every:
        what = f"is a parameter of {method_name} only with semantics {' or '.join(every[name].semantics)}"
        findings.problem(path, what, "delete it or change semantics:")
    elif name in mergekit_names.METHODS.get(method_name, ()):
        if method:
            findings.problem(path, f"this parameter of {method_name} is not supported yet", "delete it")
    elif name in _known_parameters():
        findings.note(path, f"is not a parameter of {method_name}; it has no effect")
    elif name in RecipeFile.model_fields:
        findings.problem(path, "is not a parameter", f"write {name}: at the top level of the recipe")
    else:
        takes = f"{method_name} takes {', '.join(own) or 'none'}" if method else "delete it"
        findings.problem(path, "unknown parameter", _did_you_mean(name, [*own]) or takes)
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
    findings.problem(path, "unknown key", _did_you_mean(str(path[-1]), keys) or f"{block} takes {', '.join(keys)}")
    return None


def unknown_key(findings: Findings, path: KeyPath, method_name: str) -> None:
    """Report a key that the schema does not have, or note that it does nothing."""
    name, level = str(path[-1]), _level(path[:-1])
    if level is RecipeFile and name in mergekit_names.EVOLVE_KEYS:
        findings.note(path, "is a key of mergekit-evolve; it has no effect")
    elif level is RecipeFile and name == "out_path":
        findings.problem(path, "unknown key", "delete it; the output folder is given to the command")
    elif level is SliceItem and name == "merge_method":
        findings.problem(
            path, "a slice cannot have its own merge method (mergekit ignores it)", "write one recipe per method"
        )
    elif level is ModelItem and name == "layer_range":
        findings.problem(path, "models: takes whole models", "use slices: with sources: to choose layers")
    elif name in _known_parameters() and "parameters" in level.model_fields:
        if _takes(method_name, name):
            findings.problem(path, "is a parameter, and has no effect here", "write it under parameters:")
        else:
            findings.note(path, f"is not a parameter of {method_name}; it has no effect")
    else:
        close = _did_you_mean(name, list(level.model_fields))
        findings.problem(path, "unknown key", close or "delete it; mergekit ignores it")


def _belongs_to_model(path: KeyPath) -> bool:
    return path[0] == "models" or "sources" in path


def _level(path: KeyPath) -> type[Keys]:
    if not path:
        return RecipeFile
    if path[0] == "tokenizer":
        return TokenizerItem
    if path[0] == "models":
        return ModelItem
    return SourceItem if "sources" in path else SliceItem


def _takes(method_name: str, parameter: str) -> bool:
    method = all_methods().get(method_name)
    own = {p.name for p in method.parameters} if method else set()
    return parameter in own | mergekit_names.METHODS.get(method_name, frozenset())


def _known_parameters() -> frozenset[str]:
    return mergekit_names.PARAMETERS.union(p.name for method in all_methods().values() for p in method.parameters)


def _did_you_mean(name: str, choices: list[str]) -> str:
    name = mergekit_names.RENAMED.get(name, name)
    close = get_close_matches(name.replace("-", "_").lower(), choices, n=1, cutoff=0.8)
    return f"did you mean {close[0]!r}?" if close else ""
