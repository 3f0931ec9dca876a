"""From GGUF files to a checkpoint: every tensor under its name in transformers, with a decoder where it needs one."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from ...dtypes import float32, uint8
from ...errors import CheckpointError
from ..opening import open_weights
from ..types import Checkpoint, Coded, Part, TensorEntry
from .architectures import ARCHITECTURES, Architecture
from .header import TYPES, GgufFile, GgufTensor, read_gguf
from .naming import parts_of
from .settings import FREQUENCIES, check_same, config_of, count_of, scaling_of_llama3
from .values import FLOATS, GgufValues, GgufVector, require_package

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")


def open_gguf(path: str, config: dict[str, Any] | None = None) -> Checkpoint:
    """Read the headers of a GGUF file, or of all parts of a split one.

    Args:
        config: ``config.json`` beside it; where there is none, it is made from the metadata.

    Raises:
        CheckpointError: the files are damaged or incomplete, of an architecture that is not known, or of types that
            cannot be decoded; or the config beside it is of another model.
    """
    path = os.path.abspath(path)
    files = _files(path)
    metadata = files[0].metadata
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise CheckpointError(
            f"{path}: its architecture is {name!r:.50}; read are {known} (use the original checkpoint)"
        )
    stored = _joined(path, files)
    require_package(path, {tensor.kind for tensor in stored.values()})
    if config is None:
        config = _config(path, metadata, stored)
    else:
        _checked(os.path.join(os.path.dirname(path), "config.json"), config, metadata)
    tensors: dict[str, TensorEntry] = {}
    for own, tensor in stored.items():
        if own != FREQUENCIES:
            for target, entry in _entries(path, own, tensor, ARCHITECTURES[name], metadata):
                tensors[target] = entry
    formats = sorted({entry.coded.format for entry in tensors.values() if entry.coded and entry.quantized})
    left_out = {FREQUENCIES: "a buffer that is computed from the config"} if FREQUENCIES in stored else {}
    folder = os.path.dirname(path)
    notes = tuple(_without_tokenizer(path, folder))
    return Checkpoint(
        folder, tuple(file.file for file in files), tensors, config, notes, tuple(formats), left_out, path
    )


def _without_tokenizer(path: str, folder: str) -> Iterator[str]:
    if not any(os.path.exists(os.path.join(folder, name)) for name in _TOKENIZERS):
        yield (
            f"{path}: the tokenizer in a GGUF file is not converted (put the original tokenizer files beside it, or "
            "name a model that has them as tokenizer_source; otherwise the output has no tokenizer)"
        )


def _files(path: str) -> list[GgufFile]:
    """Read all parts of the model that a file belongs to."""
    parts = parts_of(path)
    missing = [part for part in parts if not os.path.lexists(part)]
    if missing and len(parts) > 1:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{path}: the part {missing[0]}{more} is missing (download all {len(parts)} parts)")
    files = [read_gguf(part) for part in parts]
    for i, file in enumerate(files):
        said = file.metadata.get("split.no", i), file.metadata.get("split.count", 0) or len(files)
        if said != (i, len(files)):
            what = f"says that it is part {said[0]} (from 0) of {said[1]}, but it is named as part {i} of {len(files)}"
            raise CheckpointError(f"{file.file.path}: {what} (name the parts as they were named, -00001-of-00002.gguf)")
    return files


def _joined(path: str, files: list[GgufFile]) -> dict[str, GgufTensor]:
    stored: dict[str, GgufTensor] = {}
    for file in files:
        for name in file.tensors.keys() & stored.keys():
            raise CheckpointError(f"{file.file.path}: {name} is also in another part (download the parts again)")
        stored |= file.tensors
    if not stored:
        raise CheckpointError(f"{path}: holds no tensors (it may be a vocabulary only)")
    said = files[0].metadata.get("split.tensors.count", len(stored))
    if said != len(stored):
        raise CheckpointError(f"{path}: its parts hold {len(stored)} tensors, but it says {said} (download them again)")
    return stored


def _entries(
    path: str, own: str, tensor: GgufTensor, architecture: Architecture, metadata: Mapping[str, Any]
) -> Iterator[tuple[str, TensorEntry]]:
    target = architecture.name_of(own)
    if target is None:
        raise CheckpointError(f"{path}: {own!r:.100} is no tensor of {architecture.model_type} that is known here")
    if target.endswith("shared_expert_gate.weight") and len(tensor.shape) == 1:
        tensor = tensor._replace(shape=(1, *tensor.shape))
    if "{}" not in target:
        yield target, _entry(own, tensor, architecture, metadata)
        return
    experts = tensor.shape[0] if tensor.shape else 0
    if len(tensor.shape) != 3 or experts != count_of(metadata, f"{metadata['general.architecture']}.expert_count"):
        raise CheckpointError(f"{path}: {own} has the shape {list(tensor.shape)}, not that of all experts, stacked")
    nbytes = tensor.nbytes // experts if experts else 0
    for i in range(experts):
        one = tensor._replace(offset=tensor.offset + i * nbytes, nbytes=nbytes, shape=tensor.shape[1:])
        yield target.format(i), _entry(own, one, architecture, metadata)


def _entry(own: str, tensor: GgufTensor, architecture: Architecture, metadata: Mapping[str, Any]) -> TensorEntry:
    path, offset, nbytes, kind, shape = tensor
    heads = _heads(own, tensor, architecture, metadata)
    shift = -1.0 if architecture.is_shifted(own) else 0.0
    if kind in FLOATS and not heads and not shift:
        return TensorEntry(path, offset, nbytes, FLOATS[kind], shape)
    title, elements, size = TYPES[kind]
    vector = bool(heads) and len(shape) == 1  # a bias: its values are the rows
    width = size if vector else (shape[-1] if shape else 1) // elements * size
    codes = TensorEntry(path, offset, nbytes, uint8, (nbytes // width if width else 0, width))
    dtype = float32 if shift else FLOATS.get(kind, float32)
    decoder = GgufVector(kind, heads) if vector else GgufValues(kind, heads, shift)
    parts = (Part(codes, by_row=not heads),)
    return TensorEntry(path, offset, nbytes, dtype, shape, Coded(f"gguf {title}", parts, decoder, moved=kind in FLOATS))


def _heads(own: str, tensor: GgufTensor, architecture: Architecture, metadata: Mapping[str, Any]) -> int:
    """Return the heads whose rows llama.cpp reordered, 0 for other tensors."""
    key = architecture.heads_key(own)
    if key is None:
        return 0
    name = metadata["general.architecture"]
    try:
        heads = count_of(metadata, f"{name}.{key}") or count_of(metadata, f"{name}.attention.head_count")
    except ValueError as error:
        raise CheckpointError(f"{tensor.path}: {error}") from error
    rows = tensor.shape[0] if tensor.shape else 0
    if not heads or rows % (2 * heads):
        raise CheckpointError(f"{tensor.path}: {own} has {rows} rows, which are no pairs in {heads} heads")
    return heads


def _checked(where: str, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    try:
        check_same(config, metadata)
    except ValueError as error:
        raise CheckpointError(
            f"{where}: {error} (give each model a folder of its own, or remove what belongs to another one)"
        ) from error


def _config(path: str, metadata: Mapping[str, Any], stored: Mapping[str, GgufTensor]) -> dict[str, Any]:
    try:
        config = config_of(metadata, stored)
        if FREQUENCIES in stored and (scaling := scaling_of_llama3(_floats(stored[FREQUENCIES]), config)):
            config["rope_scaling"] = scaling
    except ValueError as error:
        raise CheckpointError(f"{path}: {error} (put the model's config.json beside the file)") from error
    return config


def _floats(tensor: GgufTensor) -> list[float]:
    """Return the values of a short float32 vector."""
    if tensor.kind != 0 or tensor.nbytes > 1 << 16:
        raise ValueError(f"{FREQUENCIES} is no short vector of F32")
    with open_weights(tensor.path) as file:
        file.seek(tensor.offset)
        return list(struct.unpack(f"<{tensor.nbytes // 4}f", file.read(tensor.nbytes)))
