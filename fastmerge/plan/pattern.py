"""A checkpoint of training as a pattern: its names and shapes, and what it holds beside the model."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from ..checkpoint.distributed import METADATA, split_key
from ..checkpoint.distributed.chunks import Part
from ..checkpoint.distributed.describing import Description
from ..checkpoint.distributed.metadata import StoredObject, StoredTensor, read_metadata
from ..checkpoint.distributed.naming import choose, is_of_optimizer
from ..checkpoint.file_names import INDEX
from ..dtypes import DType
from ..errors import CheckpointError, nearest
from .types import CopiedFile, PiecedFile, Range

__all__ = ["Pattern"]

_MOST_SHOWN = 5
# Files that are not taken over: old weights in the hub's layout would be read in place of the new ones.
_LEFT = (METADATA, "*.distcp", "*.tmp", "*.safetensors", "pytorch_model*.bin", "*.gguf", *INDEX)
# What fastmerge wrote of the merge that made the pattern.
_OF_A_MERGE = ("fastmerge.json", "report.html", "report.csv", "report.json")


@dataclass(frozen=True)
class Pattern:
    """A checkpoint of torch.distributed.checkpoint.

    Attributes:
        place:   as it was named.
        folder:  of it.
        key:     what leads to the model.
        names:   for the model's own name of a tensor the keys that lead to it.
        shapes:  by the model's own names.
        tensors: that are not the model's and no optimizer's, by name.
        objects: the same of what is no tensor.
        left:    how many items of optimizers are not taken over.
    """

    place: str
    folder: str
    key: str
    names: Mapping[str, tuple[str, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    tensors: Mapping[str, StoredTensor]
    objects: Mapping[str, StoredObject]
    left: int

    @classmethod
    def of(cls, place: str) -> Pattern:
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
        return cls(
            place=place,
            folder=folder,
            key=".".join(first.path[:-1]) if key is None else key,
            names={own: tensor.path for own, tensor in chosen.items()},
            shapes={own: tensor.shape for own, tensor in chosen.items()},
            tensors=kept,
            objects=objects,
            left=len(others) + len(stored.objects) - len(kept) - len(objects),
        )

    @property
    def notes(self) -> Iterator[str]:
        """What is taken over, and what is not."""
        if count := len(self.tensors) + len(self.objects):
            yield f"{count} other item{'s' if count > 1 else ''} of {self.folder} are taken over as they are"
        if self.left:
            yield f"{self.left} items of optimizers in {self.folder} are of other weights, and are left out"

    @property
    def files(self) -> dict[str, CopiedFile]:
        """What lies beside its weights, by name: ``common.pt``, configs, tokenizers."""
        inside = [entry for entry in os.scandir(self.folder) if entry.is_file()]
        others = [e for e in inside if not any(fnmatchcase(e.name, pattern) for pattern in (*_LEFT, *_OF_A_MERGE))]
        return {entry.name: CopiedFile(entry.path) for entry in others}

    @property
    def identities(self) -> dict[str, tuple[str, ...]]:
        """What tells the items that are taken over from others, by name."""
        tensors = {name: tuple(map(str, tensor.chunks)) for name, tensor in self.tensors.items()}
        return tensors | {name: tuple(map(str, item)) for name, item in self.objects.items()}

    def misfits(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """Return how a model differs from this one, by its own names and shapes; "" where it does not."""
        lacking, more = self.shapes.keys() - shapes.keys(), shapes.keys() - self.shapes.keys()
        problems = []
        if lacking:
            problems.append(f"the output lacks {_listed(lacking, more)}")
        if more:
            problems.append(f"{self.place} has no {_listed(more, lacking)}")
        for name in sorted(shapes.keys() & self.shapes.keys()):
            if shapes[name] != self.shapes[name]:
                problems.append(f"{name} is {list(shapes[name])}, and {list(self.shapes[name])} in {self.place}")
        names = " (give its trainer's names with names:, or --names)" if lacking and more else ""
        return "; ".join(problems[:_MOST_SHOWN]) + names

    def taken_over(self, shard_size: int, description: Description) -> dict[str, PiecedFile]:
        """Describe what is taken over, and return the files that hold it as it is stored here."""
        files: list[list[bytes | Range]] = []
        filled = shard_size
        for name, offsets, piece in self._items(description):
            if filled >= shard_size:
                files.append([])
                filled = 0
            nbytes = piece.nbytes if isinstance(piece, Range) else len(piece)
            description.place(name, offsets, _filename(len(files) - 1), filled, nbytes)
            files[-1].append(piece)
            filled += nbytes
        return {_filename(number): PiecedFile(tuple(pieces)) for number, pieces in enumerate(files)}

    def _items(self, description: Description) -> Iterator[tuple[str, tuple[int, ...] | None, bytes | Range]]:
        for name, tensor in self.tensors.items():
            dtype = tensor.dtype.torch if isinstance(tensor.dtype, DType) else getattr(torch, tensor.dtype)
            parts = [Part(chunk.offsets, chunk.sizes) for chunk in tensor.chunks]
            empty = Part((0,) * len(tensor.shape), tensor.shape)
            description.tensor(name, tensor.path, dtype, tensor.shape, parts or [empty])
            if not parts:
                written = io.BytesIO()
                torch.save(torch.empty(tensor.shape, dtype=dtype), written)
                yield name, empty.offsets, written.getvalue()
            for chunk in tensor.chunks:
                yield name, chunk.offsets, self._range(chunk.filename, chunk.offset, chunk.length)
        for name, item in self.objects.items():
            description.object(name, item.path)
            yield name, None, self._range(item.filename, item.offset, item.length)

    def _range(self, filename: str, offset: int, nbytes: int) -> Range:
        return Range(os.path.join(self.folder, filename), offset, nbytes)


def _filename(number: int) -> str:
    return f"__1_{number}.distcp"


def _listed(names: set[str], others: set[str]) -> str:
    shown = []
    for name in sorted(names)[:_MOST_SHOWN]:
        guess = nearest(name, others)
        shown.append(f"{name} (did you mean {guess}?)" if guess else name)
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return ", ".join(shown) + more
