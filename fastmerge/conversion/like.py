"""Another checkpoint of training as a pattern: its names and shapes, and what it holds beside the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import torch

from ..checkpoint.distributed import METADATA, split_key
from ..checkpoint.distributed.chunks import Part
from ..checkpoint.distributed.metadata import StoredObject, StoredTensor, read_metadata
from ..checkpoint.distributed.naming import choose, is_of_optimizer
from ..dtypes import DType
from ..errors import CheckpointError, nearest
from .distcp import Writer

__all__ = ["Like"]

_MOST_SHOWN = 5
_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Like:
    """A checkpoint of torch.distributed.checkpoint.

    Attributes:
        place:   as it was named.
        folder:  of it.
        key:     what leads to the model.
        names:   for the model's own name of a tensor its name in the state, and the keys that lead to it.
        shapes:  by the model's own names.
        tensors: that are not the model's and no optimizer's, by name.
        objects: the same of what is no tensor.
        notes:   what is not taken over, one sentence each.
    """

    place: str
    folder: str
    key: str
    names: Mapping[str, tuple[str, tuple[str, ...]]]
    shapes: Mapping[str, tuple[int, ...]]
    tensors: Mapping[str, StoredTensor]
    objects: Mapping[str, StoredObject]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, place: str) -> Like:
        """Read what a checkpoint holds.

        Raises:
            CheckpointError: it is none, its model is not known, or no file holds an item that would be taken over.
        """
        folder, key = split_key(place)
        if not os.path.exists(os.path.join(folder, METADATA)):
            raise CheckpointError(f"{folder}: has no {METADATA} (name a folder of torch.distributed.checkpoint)")
        stored = read_metadata(os.path.join(folder, METADATA))
        chosen = choose(folder, stored.tensors, key)
        full = {id(tensor): name for name, tensor in stored.tensors.items()}
        ours = {full[id(tensor)] for tensor in chosen.values()}
        first = next(iter(chosen.values()))
        others = {name: t for name, t in stored.tensors.items() if name not in ours}
        kept = {name: t for name, t in others.items() if not is_of_optimizer(name, t.path)}
        objects = {name: o for name, o in stored.objects.items() if not is_of_optimizer(name, o.path)}
        if lost := {name for name, path in stored.lost.items() if not is_of_optimizer(name, path)}:
            what = f"no file holds {_listed(lost, set())}"
            raise CheckpointError(f"{folder}/{METADATA}: {what} (save or copy the checkpoint again)")
        left = len(others) + len(stored.objects) - len(kept) - len(objects)
        notes = (f"{left} items of optimizers in {folder} are of other weights, and are left out",) if left else ()
        return cls(
            place=place,
            folder=folder,
            key=".".join(first.path[:-1]) if key is None else key,
            names={own: (full[id(tensor)], tensor.path) for own, tensor in chosen.items()},
            shapes={own: tensor.shape for own, tensor in chosen.items()},
            tensors=kept,
            objects=objects,
            notes=notes,
        )

    @property
    def count(self) -> int:
        """How many items are taken over."""
        return len(self.tensors) + len(self.objects)

    @property
    def files(self) -> dict[str, str]:
        """The paths of what lies beside its weights, by name: ``common.pt``, configs, tokenizers."""
        inside = [entry for entry in os.scandir(self.folder) if entry.is_file()]
        return {e.name: e.path for e in inside if not e.name.endswith((".distcp", ".tmp")) and e.name != METADATA}

    def check(self, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
        """Compare a model with this one.

        Raises:
            CheckpointError: it has other names or shapes; all of them are told.
        """
        lacking, more = self.shapes.keys() - shapes.keys(), shapes.keys() - self.shapes.keys()
        problems = []
        if lacking:
            problems.append(f"it lacks {_listed(lacking, more)}")
        if more:
            problems.append(f"{self.place} has no {_listed(more, lacking)}")
        for name in sorted(shapes.keys() & self.shapes.keys()):
            if shapes[name] != self.shapes[name]:
                problems.append(f"{name} is {list(shapes[name])}, and {list(self.shapes[name])} in {self.place}")
        if problems:
            names = " (give its trainer's names with --names)" if lacking and more else ""
            raise CheckpointError(f"{where}: {'; '.join(problems[:_MOST_SHOWN])}{names}")

    def write_others(self, writer: Writer) -> None:
        """Write what is taken over, as it is stored here."""
        for name, tensor in self.tensors.items():
            dtype = tensor.dtype.torch if isinstance(tensor.dtype, DType) else getattr(torch, tensor.dtype)
            parts = [Part(chunk.offsets, chunk.sizes) for chunk in tensor.chunks]
            if not parts:
                parts = [Part((0,) * len(tensor.shape), tensor.shape)]
                writer.describe(name, tensor.path, dtype, tensor.shape, parts)
                writer.tensor(name, parts[0], torch.empty(tensor.shape, dtype=dtype))
                continue
            writer.describe(name, tensor.path, dtype, tensor.shape, parts)
            for chunk in tensor.chunks:
                writer.stored_tensor(name, chunk.offsets, self._range(chunk.filename, chunk.offset, chunk.length))
        for name, item in self.objects.items():
            writer.stored_object(name, item.path, self._range(item.filename, item.offset, item.length))

    def _range(self, filename: str, offset: int, length: int) -> Callable[[BinaryIO], None]:
        def write(target: BinaryIO) -> None:
            with open(os.path.join(self.folder, filename), "rb") as source:
                source.seek(offset)
                left = length
                while left:
                    piece = source.read(min(left, _AT_ONCE))
                    if not piece:
                        raise CheckpointError(f"{source.name}: ends before byte {offset + length} (copy it again)")
                    target.write(piece)
                    left -= len(piece)

        return write


def _listed(names: set[str], others: set[str]) -> str:
    shown = []
    for name in sorted(names)[:_MOST_SHOWN]:
        guess = nearest(name, others)
        shown.append(f"{name} (did you mean {guess}?)" if guess else name)
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return ", ".join(shown) + more
