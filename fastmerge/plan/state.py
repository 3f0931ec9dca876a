"""The tensors of an output as the state of a trainer names them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from ..checkpoint import locate
from ..checkpoint.distributed.naming import keys_of
from ..checkpoint.distributed.tables import NamesError
from ..errors import CheckpointError, InvalidInput, Problem
from ..recipe.types import Recipe
from .findings import Findings
from .layout import Sized
from .models import HEAD, OpenModel, is_head, is_vocabulary
from .types import AsState, TrainingState

if TYPE_CHECKING:
    from .pattern import Pattern

__all__ = ["as_state", "state_of"]


def state_of(format: str, key: str | None, like: str | os.PathLike[str] | None = None) -> AsState | None:
    """Return ``make_plan``'s option for an output in a format, "hf" or "dcp"; InvalidInput where it has no such."""
    if format not in ("hf", "dcp"):
        raise InvalidInput([Problem("format", f"is {format!r}, expected hf or dcp")])
    given = {"key": key, "like": like}
    if format == "hf":
        problems = [
            Problem(name, f"is {value!r}, and an output in the hub's layout has none", "leave it out, or write dcp")
            for name, value in given.items()
            if value is not None
        ]
        if problems:
            raise InvalidInput(problems)
        return None
    return AsState(key, None if like is None else os.fspath(like))


def as_state(
    asked: AsState,
    recipe: Recipe,
    donor: OpenModel,
    tensors: Sequence[Sized],
    aliases: Mapping[str, str],
    findings: Findings,
) -> tuple[TrainingState, dict[str, tuple[str, ...]], Pattern | None]:
    """Return how the output names its tensors, the keys that lead to each, aliases included, and the pattern.

    A head that the config ties to the embedding is stored as it, and has a name of its own: trainers ask for both. A
    pattern says whether it has.

    Args:
        donor:   the model whose config the output has.
        aliases: further names of tensors that the files of the inputs say.
    """
    joined = next((before.name for before, tensor in pairwise(tensors) if tensor.joined), None)
    if joined is not None:
        what = "is merged as a part of a stack of experts, which a checkpoint of training cannot hold as tensors of one"
        findings.problem(joined, what, "merge into the hub's layout, then run fastmerge convert OUT STEP --to dcp")
    names = [tensor.name for tensor in tensors]
    shared = dict(aliases)
    embedding = next((name for name in names if is_vocabulary(name) and not is_head(name)), None)
    if donor.says_tied and embedding is not None and not any(map(is_head, (*names, *shared))):
        shared[HEAD] = embedding
    state = TrainingState(asked.key or "", recipe.names, shared)
    own = _own_names(recipe, names, shared, findings)
    if own is None:
        return state, {}, None
    try:
        pattern = None if asked.like is None else _pattern(asked.like)
        key = asked.key if asked.key is not None else "model" if pattern is None else pattern.key
        keys = keys_of(key)
    except CheckpointError as error:
        findings.problem("key" if asked.like is None else "like", str(error))
        return state, {}, None
    state = TrainingState(key, recipe.names, shared, None if pattern is None else pattern.place)
    if pattern is None:
        return state, {name: (*keys, own[name]) for name in (*names, *shared)}, None
    if key != pattern.key:
        what = f"is {key!r}, and {pattern.place} holds its model under {pattern.key!r}"
        findings.problem("key", what, "leave it out")
    for alias in [alias for alias in shared if own[alias] not in pattern.names]:
        del shared[alias]
    shapes = {own[tensor.name]: tensor.shape for tensor in tensors}
    shapes |= {own[alias]: shapes[own[name]] for alias, name in shared.items()}
    if what := pattern.misfits(shapes):
        findings.problem("like", what)
        return state, {}, pattern
    for note in pattern.notes:
        findings.note(note)
    return state, {name: pattern.names[own[name]] for name in (*names, *shared)}, pattern


def _pattern(like: str) -> Pattern:
    from .pattern import Pattern  # with torch, whose own classes describe it

    return Pattern.of(locate(like))


def _own_names(
    recipe: Recipe, names: Sequence[str], shared: dict[str, str], findings: Findings
) -> dict[str, str] | None:
    """Return the trainer's names; aliases that it has none for leave ``shared``. None where the table does not fit."""
    if recipe.names is None:
        return {name: name for name in (*names, *shared)}
    try:
        own = recipe.names.to_trainer(names, recipe.path)
    except NamesError as error:
        findings.problem(recipe.where("names"), error.fault)
        return None
    for alias in list(shared):
        try:
            own |= recipe.names.to_trainer([alias], recipe.path)
        except NamesError:  # the trainer has one name for both
            del shared[alias]
    return own
