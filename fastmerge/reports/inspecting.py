"""What a checkpoint holds, from its headers and config."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, TensorEntry
from ..checkpoint.layers import find_stacks, split_layer
from ..checkpoint.quantized import decoded
from ..checkpoint.trained import as_hub_models
from ..errors import CheckpointError
from ..recipe.types import ModelRef
from ..recipe.writing import Table, read_names
from ..results import Result
from ..sizes import show_size
from .opening import open_model, reference_of, with_adapter

MANIFEST = "fastmerge.json"


@dataclass(frozen=True, repr=False)
class Inspection(Result):
    """A checkpoint, as its headers have it.

    Attributes:
        folder:     where it lies.
        source:     what it was opened by where that is a file, or a key in a folder; "" for a folder.
        config:     its config.json; empty without one.
        files:      bytes of every file of weights, by path.
        tensors:    every tensor by name, with dtype, shape and place.
        parameters: elements of the tensors of numbers with a fraction; of quantized ones, what they stand for.
        dtypes:     bytes by dtype, or by the format of quantized tensors.
        layers:     layers by stack, those that slices cut first.
        vocabulary: tokens that the embedding has rows for; None where neither config nor names tell.
        notes:      what lies beside the weights.
        adapter:    what an adapter does to it; empty without one.
        unread:     why its weights cannot be merged; empty where they can.
        manifest:   of the merge that made it; None where fastmerge did not.
    """

    folder: str
    source: str
    config: dict[str, Any]
    files: dict[str, int]
    tensors: dict[str, TensorEntry]
    parameters: int
    dtypes: dict[str, int]
    layers: dict[str, int]
    vocabulary: int | None
    notes: tuple[str, ...]
    adapter: str
    unread: str
    manifest: dict[str, Any] | None

    @property
    def stored(self) -> int:
        """Bytes of all tensors, as they are stored."""
        return sum(self.dtypes.values())

    def facts(self) -> list[tuple[str, str]]:
        """Return what to show of it, as names and texts."""
        facts = [
            ("file" if os.path.isfile(self.source) else "folder", self.source or self.folder),
            *([("adapter", self.adapter)] if self.adapter else []),
            ("type", str(self.config.get("model_type", "no config.json"))),
            ("parameters", show_count(self.parameters)),
            ("files", f"{len(self.files)}, {show_size(sum(self.files.values()))}"),
            ("tensors", str(len(self.tensors))),
            ("dtypes", ", ".join(f"{dtype} {show_size(nbytes)}" for dtype, nbytes in self.dtypes.items())),
            ("memory", f"{show_size(self.stored)} as stored, {show_size(2 * self.parameters)} in 16 bits"),
            ("layers", ", ".join(f"{count} {stack or 'at the top'}" for stack, count in self.layers.items())),
            ("vocabulary", "unknown" if self.vocabulary is None else f"{self.vocabulary} tokens"),
        ]
        if self.manifest is not None:
            made = self.manifest
            facts += [
                ("merged by", f"{made['method']} (semantics: {made['semantics']}, seed: {made['seed']})"),
                ("inputs", ", ".join(item["reference"] for item in made["inputs"])),
            ]
        return facts + ([("not merged", self.unread)] if self.unread else [])

    def __str__(self) -> str:
        return f"{self.folder}: {show_count(self.parameters)} parameters in {len(self.tensors)} tensors"


def inspect(
    model: str | os.PathLike[str], *, names: Table | None = None, config_source: str | None = None
) -> Inspection:
    """Read the headers of ``model``: a folder, a file of weights, or a hub id; ``model+adapter`` as a merge makes it.

    Args:
        names, config_source: of a checkpoint of training, as in ``average``.
    Raises:
        CheckpointError: there is none, or its files are corrupt, or the table does not fit.
        InvalidInput:    the table is none, or it or a config is given for a model that is not of training.
    """
    reference = reference_of(model)
    opened = open_model(reference)
    (named,) = as_hub_models([opened], read_names(names), config_source)
    checkpoint, unread, adapter = (*_decoded(named), "") if reference.lora is None else _adapted(named, reference)
    config = checkpoint.config or {}
    dtypes = Counter[str]()
    for entry in checkpoint.tensors.values():
        dtypes[stored_dtype(entry)] += stored_bytes(entry)
    stacks = find_stacks([parts for name in checkpoint.tensors if (parts := split_layer(name))], checkpoint.config)
    return Inspection(
        folder=opened.folder,
        source=opened.source,
        config=config,
        files={file.path: file.nbytes for file in checkpoint.files},
        tensors=dict(checkpoint.tensors),
        parameters=sum(math.prod(entry.shape) for entry in checkpoint.tensors.values() if _is_parameter(entry)),
        dtypes=dict(dtypes.most_common()),
        layers=dict(sorted(stacks.counts.items(), key=lambda item: item[0] != stacks.main)),
        vocabulary=_vocabulary(config, checkpoint),
        notes=tuple(checkpoint.notes),
        unread=unread,
        adapter=adapter,
        manifest=_manifest(opened.folder),
    )


def show_count(count: int) -> str:
    """Return a number of parameters as people name models: 8.03 B, 494 M, 21 k."""
    for limit, unit in ((10**9, " B"), (10**6, " M"), (10**3, " k")):
        if count >= limit:
            return f"{count / limit:.3g}{unit}"
    return str(count)


def stored_dtype(entry: TensorEntry) -> str:
    """Return the dtype as it is stored: of a quantized tensor the name of its format."""
    return entry.coded.format if entry.coded else str(entry.dtype)


def stored_bytes(entry: TensorEntry) -> int:
    """Return the bytes of all that a tensor is stored as."""
    return sum(part.nbytes for part, _ in entry.coded.parts) if entry.coded else entry.nbytes


def _is_parameter(entry: TensorEntry) -> bool:
    return entry.coded is not None or "float" in entry.dtype.name


def _vocabulary(config: dict[str, Any], checkpoint: Checkpoint) -> int | None:
    for values in (config, config.get("text_config")):
        if isinstance(values, dict) and isinstance(values.get("vocab_size"), int):
            return values["vocab_size"]
    endings = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
    return next((entry.shape[0] for name, entry in checkpoint.tensors.items() if name.endswith(endings)), None)


def _manifest(folder: str) -> dict[str, Any] | None:
    if not os.path.exists(os.path.join(folder, MANIFEST)):
        return None
    from ..engine.manifest import read_manifest

    return read_manifest(Path(folder))


def _adapted(checkpoint: Checkpoint, reference: ModelRef) -> tuple[Checkpoint, str, str]:
    """Return the checkpoint with the tensors that an adapter makes of it, and what it does; as ``_decoded``."""
    own = decoded(checkpoint)
    found = with_adapter(own, reference)
    tensors = {n: TensorEntry(t.path, t.offset, t.nbytes, t.dtype, t.shape, t.coded) for n, t in found.tensors.items()}
    assert found.adapter is not None
    said = f"{found.adapter.path}: {found.says}"
    return replace(own, files=found.files, tensors=tensors, notes=found.notes), "", said


def _decoded(checkpoint: Checkpoint) -> tuple[Checkpoint, str]:
    """Return the checkpoint with its weights as they are merged; where they cannot be read, as stored, and why."""
    try:
        return decoded(checkpoint), ""
    except CheckpointError as error:
        return checkpoint, str(error)
