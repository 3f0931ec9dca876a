"""Which tensors of a training state are the model's, and what they are called."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from ...errors import CheckpointError
from . import with_key
from .metadata import StoredTensor

# Keys of a state dict under which trainers keep what is no model.
_OPTIMIZERS = re.compile(r"optim\w*|\w*optimizers?|opt(_state)?|chained_\d+")
_OTHERS = re.compile(
    rf"({_OPTIMIZERS.pattern}|\w*scheduler\w*|\w*scaler|\w*dataloader\w*|\w*rng\w*|train_state|trainer|\w*averager|"
    r"step|steps|iteration|epoch|global_step|\w*loss\w*|metrics?)"
)
# What wrappers of modules put into names.
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def choose(folder: str, tensors: Mapping[str, StoredTensor], key: str | None) -> dict[str, StoredTensor]:
    """Return the tensors of a model by its own names.

    Args:
        key: what leads to the model in the state that was saved, with dots; None takes the only one there is.
    Raises:
        CheckpointError: there is none, or several.
    """
    if key is not None:
        chosen = {name.removeprefix(f"{key}."): t for name, t in tensors.items() if name.startswith(f"{key}.")}
        if not chosen:
            there = ", ".join(filter(None, _groups(tensors.values())[:6])) or "only names without a key"
            raise CheckpointError(f"{folder}: holds no tensors under the key {key}; there are {there}")
        return _unwrapped(folder, chosen)
    ours = {name: t for name, t in tensors.items() if not any(map(_OTHERS.fullmatch, t.path))}
    # Without a mapping in the metadata, the key of an optimizer is only a part of the name.
    ours = {name: t for name, t in ours.items() if len(t.path) > 1 or not _OTHERS.fullmatch(name.partition(".")[0])}
    groups = _groups(ours.values())
    if not groups:
        raise CheckpointError(f"{folder}: holds no tensors of a model (it may be the state of an optimizer only)")
    if len(groups) > 1:
        named = ", ".join(group or "(no key)" for group in groups[:6])
        sizes = dict.fromkeys(filter(None, groups), 0)
        for tensor in ours.values():
            if (group := _group(tensor)) in sizes:
                sizes[group] += math.prod(tensor.shape)
        largest = with_key(folder, max(sizes, key=lambda group: (sizes[group], group)))
        raise CheckpointError(f"{folder}: holds tensors under several keys: {named} (name the model's: {largest})")
    prefix = f"{groups[0]}." if groups[0] else ""
    return _unwrapped(folder, {name.removeprefix(prefix): t for name, t in ours.items()})


def unwrapped(name: str) -> str:
    """Return a name without the parts of wrappers of modules."""
    return _WRAPPERS.sub("", name)


def keys_of(key: str) -> tuple[str, ...]:
    """Return the keys that lead to a model in a state, of their text with dots; CheckpointError where it is none."""
    keys = tuple(key.split(".")) if key else ()
    if not all(keys):
        raise CheckpointError(f"{key!r} is no key (name one such as model or app.model)")
    return keys


def is_of_optimizer(name: str, path: Sequence[str]) -> bool:
    """True for an item of the state of an optimizer, by its name or the keys that lead to it."""
    return any(map(_OPTIMIZERS.fullmatch, (name.partition(".")[0], *path)))


def _groups(tensors: Iterable[StoredTensor]) -> list[str]:
    return sorted(set(map(_group, tensors)))


def _group(tensor: StoredTensor) -> str:
    """Return the keys that lead to a tensor, but for its own."""
    return ".".join(tensor.path[:-1])


def _unwrapped(folder: str, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        own = unwrapped(name)
        if own in found:
            raise CheckpointError(f"{folder}: {own} is there twice, with and without the name of a wrapper")
        found[own] = tensor
    return found
