"""Conversion into a checkpoint of training: read a model, write what ``torch.distributed.checkpoint.load`` reads."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from ..arguments import size_of
from ..checkpoint import Checkpoint, TensorEntry, locate, open_checkpoint
from ..checkpoint.distributed import with_key
from ..checkpoint.distributed.chunks import Part
from ..checkpoint.quantized import decoded
from ..engine.files import InputFiles
from ..engine.folders import appearing, sync
from ..engine.reading import Values
from ..errors import OutputError
from ..plan.config import plain_config
from ..plan.copies import MODEL_FILES, TOKENIZER_FILES, matching
from ..plan.models import HEAD
from ..progress import Progress, ProgressLike, shown
from ..recipe.writing import Table, read_names
from .distcp import Writer
from .like import Like
from .state import Item, is_tied, items_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DcpReport", "to_dcp"]


@dataclass(frozen=True)
class DcpReport:
    """Attributes:
    path:    of the folder.
    key:     what leads to the model in the state that it holds; "" where nothing does.
    tensors: of the model.
    others:  items that were taken over from another checkpoint, as they are.
    notes:   what is not as one might expect, one sentence each.
    nbytes:  that all files take.
    seconds: wall time.
    """

    path: str
    key: str
    tensors: int
    others: int
    notes: tuple[str, ...]
    nbytes: int
    seconds: float


def to_dcp(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    key: str | None = None,
    names: Table | None = None,
    like: str | os.PathLike[str] | None = None,
    shard_size: int | str = "5GB",
    progress: ProgressLike = None,
) -> DcpReport:
    """Write a model as a checkpoint of torch.distributed.checkpoint. It appears when it is complete and was read back.

    Memory: 128 MiB, or two rows of a tensor where that is more; of quantized models see ``docs/formats.md``.

    Args:
        model: a folder or hub id, as recipes name models.
        out:   a folder that does not exist yet, or is empty.
        key:   what leads to the model in the state, with dots: "model" for ``{"model": ...}``, which is the default
               without ``like``, "" for a model alone.
        names: a table of names, as for inputs, read backwards: the hub's names become the trainer's.
        like:  a checkpoint of the same model. It says the key, the names and the shapes that are expected; all that it
               holds beside the model and the states of optimizers is taken over as it is: counters, data loaders,
               ``common.pt``.
        shard_size: bytes of a file, about.
        progress: as in ``fastmerge.merge``; of the bytes that are written and read back.
    Raises:
        CheckpointError: the model cannot be opened, or is not that of ``like``; names that the table leaves over.
        OutputError:     ``out`` exists, the disk refuses, or what was written reads as something else.
    """
    started = time.perf_counter()
    checkpoint = decoded(open_checkpoint(locate(os.fspath(model))))
    template = None if like is None else Like.of(locate(os.fspath(like)))
    table = read_names(names)
    prefix, items = items_of(checkpoint, table, key, template)
    total = 2 * sum(_nbytes(item.entry) for item in items)
    notes = list(template.notes if template else ())
    if template is None and is_tied(checkpoint):
        notes.append(f"the head is the embedding and is not stored twice: leave {HEAD} out of the state that is loaded")
    with shown(progress, "converting") as call, appearing(out) as folder:
        sums = _write(folder, checkpoint, items, template, size_of("shard_size", shard_size), _counting(call, 0, total))
        _copy_files(folder, checkpoint, template)
        _check(folder, prefix, items, sums, _counting(call, total // 2, total))
    final = Path(out).expanduser()
    return DcpReport(
        path=str(final),
        key=prefix,
        tensors=len(items),
        others=template.count if template else 0,
        notes=tuple(notes),
        nbytes=sum(path.stat().st_size for path in final.rglob("*") if path.is_file()),
        seconds=time.perf_counter() - started,
    )


def _write(
    folder: Path, checkpoint: Checkpoint, items: list[Item], template: Like | None, shard_size: int,
    tell: Callable[[int], None],
) -> dict[str, list[str]]:  # fmt: skip
    """Write all items; return a checksum of every part by the name of its tensor."""
    sums: dict[str, list[str]] = {}
    with InputFiles(checkpoint.files) as inputs, Writer(folder, shard_size) as writer:
        inputs.open()
        for item in items:
            entry, parts = item.entry, item.parts
            writer.describe(item.name, item.path, entry.dtype.torch, entry.shape, parts)
            sums[item.name] = []
            for part, values in _values(entry, parts, inputs):
                writer.tensor(item.name, part, values)
                sums[item.name].append(_checksum(values))
                tell(values.nbytes)
        inputs.check()
        if template is not None:
            template.write_others(writer)
        writer.finish()
    return sums


def _values(entry: TensorEntry, parts: list[Part], inputs: InputFiles) -> Iterator[tuple[Part, Tensor]]:
    reader, at = Values(entry, inputs), 0
    for part in parts:
        count = math.prod(part.sizes)
        yield part, reader.elements(at, at + count).view(part.sizes)
        at += count


def _checksum(values: Tensor) -> str:
    import torch

    return xxhash.xxh3_64(values.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _copy_files(folder: Path, checkpoint: Checkpoint, template: Like | None) -> None:
    """Put config and tokenizer of the model beside it, and what else the other checkpoint has in its folder."""
    paths = {name: file.path for name, file in matching(checkpoint.folder, (*MODEL_FILES, *TOKENIZER_FILES)).items()}
    paths |= template.files if template else {}
    for name, path in paths.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        sync(place)
    if checkpoint.config is not None:
        text = json.dumps(plain_config(checkpoint.config), indent=2, ensure_ascii=False) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")


def _check(
    folder: Path, key: str, items: list[Item], sums: Mapping[str, list[str]], tell: Callable[[int], None]
) -> None:
    """Read everything back: it must be the tensors of the model, byte by byte."""
    back = open_checkpoint(with_key(str(folder), key))
    found = {name: (entry.dtype, entry.shape) for name, entry in back.tensors.items()}
    if found != {item.own: (item.entry.dtype, item.entry.shape) for item in items}:
        raise OutputError(f"{folder}: reads as other tensors than those of the model")
    with InputFiles(back.files) as files:
        files.open()
        for item in items:
            stored = _values(back.tensors[item.own], item.parts, files)
            for (_, values), checksum in zip(stored, sums[item.name], strict=True):
                if _checksum(values) != checksum:
                    raise OutputError(f"{folder}: {item.name} reads as other values than were written")
                tell(values.nbytes)


def _counting(progress: Progress | None, done: int, total: int) -> Callable[[int], None]:
    def tell(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    return tell


def _nbytes(entry: TensorEntry) -> int:
    return math.prod(entry.shape) * entry.dtype.itemsize
