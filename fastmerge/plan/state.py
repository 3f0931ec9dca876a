"""The tensors of an output as the state of a trainer names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from ..checkpoint.distributed.naming import keys_of
from ..checkpoint.distributed.tables import NamesError
from ..errors import CheckpointError, InvalidInput, Problem
from ..recipe.types import Recipe
from .findings import Findings
from .layout import Sized
from .models import HEAD, OpenModel, is_head, is_vocabulary
from .types import TrainingState

__all__ = ["as_state", "state_key"]


def state_key(format: str, key: str | None) -> str | None:
    """Return ``make_plan``'s key of an output in a format, "hf" or "dcp"; InvalidInput where there is none."""
    if format not in ("hf", "dcp"):
        raise InvalidInput([Problem("format", f"is {format!r}, expected hf or dcp")])
    if format == "hf" and key is not None:
        raise InvalidInput([Problem("key", f"is {key!r}, and an output in the hub's layout has none", "leave it out")])
    return None if format == "hf" else "model" if key is None else key


def as_state(
    key: str,
    recipe: Recipe,
    donor: OpenModel,
    tensors: Sequence[Sized],
    aliases: Mapping[str, str],
    findings: Findings,
) -> tuple[TrainingState, dict[str, tuple[str, ...]]]:
    """Return how the output names its tensors, and the keys that lead to each, aliases included.

    A head that the config ties to the embedding is stored as it, and has a name of its own: trainers ask for both.

    Args:
        key:     what leads to the model, with dots.
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
    state = TrainingState(key, recipe.names, shared)
    try:
        keys = keys_of(key)
    except CheckpointError as error:
        findings.problem("key", str(error))
        return state, {}
    if recipe.names is None:
        return state, {name: (*keys, name) for name in (*names, *shared)}
    try:
        own = recipe.names.to_trainer(names, recipe.path)
    except NamesError as error:
        findings.problem(f"{recipe.path}: names", error.fault)
        return state, {}
    for alias in list(shared):
        try:
            own |= recipe.names.to_trainer([alias], recipe.path)
        except NamesError:  # the trainer has one name for both
            del shared[alias]
    return state, {name: (*keys, own[name]) for name in (*names, *shared)}
