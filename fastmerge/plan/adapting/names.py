"""Finds the model's names for the tensors that an adapter changes: the same, or under the one prefix that differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..findings import Findings
from ..types import InputTensor

__all__ = ["HEAD", "own_names"]

HEAD = "lm_head.weight"


def own_names(names: Sequence[str], tensors: Mapping[str, InputTensor], path: str, found: Findings) -> dict[str, str]:
    """Return the model's names for an adapter's; a problem says for which it has none."""
    missing = [name for name in names if name not in tensors]
    if not missing:
        return {name: name for name in names}
    prefixes = [pair for pair in _prefixes(missing[0], tensors) if all(_under(pair, n, tensors) for n in names)]
    if len(prefixes) == 1:
        theirs, ours = (prefix or "no prefix" for prefix in prefixes[0])
        found.note(f"{path}: its names have {theirs} where the model's have {ours}: folded in there")
        return {name: _under(prefixes[0], name, tensors) or name for name in names}
    head = next((name for name in missing if name.endswith(HEAD)), None)
    there = {name: name for name in names if name in tensors}
    if head is not None and len(missing) == 1:
        what = f"the adapter changes {head}, which the model does not have: it ties its head to the embedding"
        found.problem(path, what, "give the model a head of its own first, a copy of the embedding")
        return there
    listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    what = f"{len(missing)} of the {len(names)} tensors that the adapter changes are not in the model: {listed}"
    if near := _most_alike(missing[0], tensors):
        what += f"; the model has {near}"
    if prefixes:
        what += f"; they fit below each of {', '.join(ours or 'no prefix' for _, ours in prefixes)}"
    found.problem(path, what, "name the base that the adapter was trained on")
    return there


def _prefixes(name: str, tensors: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs of prefixes, the adapter's and the model's, by which ``name`` differs from a tensor's name."""
    pairs: dict[tuple[str, str], None] = {}
    for other in tensors:
        same = _common_end(name, other)
        pair = name[: len(name) - len(same)], other[: len(other) - len(same)]
        numbered = any(part.isdigit() for prefix in pair for part in prefix.split("."))
        if not numbered and (same.count(".") >= 2 or same == name):
            pairs[pair] = None
    return list(pairs)


def _common_end(one: str, other: str) -> str:
    """Return the longest end, in whole parts, that two names share."""
    parts: list[str] = []
    for a, b in zip(reversed(one.split(".")), reversed(other.split(".")), strict=False):
        if a != b:
            break
        parts.append(a)
    return ".".join(reversed(parts))


def _under(prefixes: tuple[str, str], name: str, tensors: Mapping[str, InputTensor]) -> str | None:
    theirs, ours = prefixes
    moved = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
    return moved if moved in tensors else name if name in tensors else None


def _most_alike(name: str, tensors: Iterable[str]) -> str | None:
    alike = max(tensors, key=lambda other: len(_common_end(name, other)), default=None)
    return alike if alike and _common_end(name, alike).count(".") else None
