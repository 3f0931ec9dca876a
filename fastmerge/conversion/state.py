"""The tensors of a model as the state of a trainer has them: names, keys that lead to them, chunks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..checkpoint import Checkpoint, TensorEntry
from ..checkpoint.distributed.chunks import Part, parts_of
from ..checkpoint.distributed.naming import keys_of, unwrapped
from ..checkpoint.distributed.tables import NamesError, NameTable
from ..checkpoint.layers import says_tied
from ..errors import CheckpointError
from ..plan.models import HEAD, is_head, is_vocabulary
from .like import Like

__all__ = ["Item", "is_tied", "items_of"]


@dataclass(frozen=True)
class Item:
    """A tensor of the output: the model's name of it, its name in the state, the keys that lead to it, its values."""

    own: str
    name: str
    path: tuple[str, ...]
    entry: TensorEntry

    @property
    def parts(self) -> list[Part]:
        """Its parts, along the first dimension. Two are held, one of them while the other is read."""
        return parts_of(self.entry.shape, self.entry.dtype.itemsize)


def items_of(
    checkpoint: Checkpoint, table: NameTable | None, key: str | None, template: Like | None
) -> tuple[str, list[Item]]:
    """Return the key of the model, and its tensors as the output names them.

    Raises:
        CheckpointError: ``key`` is none, the table does not fit, or the model is not that of ``template``.
    """
    given = _with_tied_head(checkpoint, table, template)
    renamed = dict(zip(given, given, strict=True)) if table is None else table.to_trainer(given, checkpoint.place)
    own = {renamed[name]: entry for name, entry in given.items()}
    if template is not None:
        if key not in (None, template.key):
            raise CheckpointError(
                f"{template.place}: holds its model under {template.key!r}, not {key!r} (leave --key out)"
            )
        template.check({name: entry.shape for name, entry in own.items()}, checkpoint.place)
        return template.key, [Item(name, *template.names[name], entry) for name, entry in own.items()]
    prefix = "model" if key is None else key
    keys = keys_of(prefix)
    return prefix, [Item(unwrapped(name), ".".join((*keys, name)), (*keys, name), entry) for name, entry in own.items()]


def _with_tied_head(
    checkpoint: Checkpoint, table: NameTable | None, template: Like | None
) -> Mapping[str, TensorEntry]:
    """Return the tensors, with the embedding as head where it is that, and the pattern stores both."""
    if not (template and is_tied(checkpoint)):
        return checkpoint.tensors
    try:
        own = HEAD if table is None else table.to_trainer([HEAD], "")[HEAD]
    except NamesError:
        return checkpoint.tensors
    embedding = next((t for name, t in checkpoint.tensors.items() if is_vocabulary(name)), None)
    if embedding is None or own not in template.shapes:
        return checkpoint.tensors
    return {**checkpoint.tensors, HEAD: embedding}


def is_tied(checkpoint: Checkpoint) -> bool:
    """True where a head that is the embedding is not stored by itself."""
    return says_tied(checkpoint.config) is True and not any(map(is_head, checkpoint.tensors))
