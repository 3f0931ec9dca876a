"""From GGUF files to a checkpoint: every tensor under its name in transformers, with a decoder where it needs one."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ...errors import CheckpointError
from ..types import Checkpoint, Coded, Part, TensorEntry
from .architectures import ARCHITECTURES, Architecture, config_of
from .header import TYPES, GgufFile, GgufTensor, read_gguf
from .values import FLOATS, GgufValues, require_package

_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_COMPUTED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def open_gguf(path: str, config: dict[str, Any] | None = None) -> Checkpoint:
    """Read the headers of a GGUF file, or of all parts of a split one.

    Args:
        config: ``config.json`` beside it; where there is none, it is made from the metadata.

    Raises:
        CheckpointError: the files are damaged or incomplete, of an architecture that is not known, or of types that
            cannot be decoded.
    """
    path = os.path.abspath(path)
    files = [read_gguf(part) for part in _parts(path)]
    metadata = files[0].metadata
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"{path}: its architecture is {name!r}; read are {known} (use the original checkpoint)")
    stored = _joined(path, files)
    require_package(path, {tensor.kind for tensor in stored.values()})
    tied = "output.weight" not in stored
    folder = os.path.dirname(path)
    config = config or _config(path, metadata, stored, tied)
    tensors: dict[str, TensorEntry] = {}
    left_out = {}
    for own, tensor in stored.items():
        if own in _COMPUTED:
            left_out[own] = "a buffer that is computed from the config"
            continue
        for target, entry in _entries(path, own, tensor, ARCHITECTURES[name], config):
            tensors[target] = entry
    formats = sorted({entry.coded.format for entry in tensors.values() if entry.coded})
    notes = () if os.path.exists(os.path.join(folder, "tokenizer.json")) else (
        f"{path}: the tokenizer in a GGUF file is not converted (put the original tokenizer files beside it, or name "
        "another model as tokenizer_source)",
    )  # fmt: skip
    return Checkpoint(
        folder, tuple(file.file for file in files), tensors, config, notes, tuple(formats), left_out, source=path
    )


def _parts(path: str) -> list[str]:
    match = _SPLIT.fullmatch(os.path.basename(path))
    if match is None:
        return [path]
    stem, count = match[1], int(match[3])
    parts = [os.path.join(os.path.dirname(path), f"{stem}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
    missing = [part for part in parts if not os.path.exists(part)]
    if missing:
        raise CheckpointError(f"{path}: {len(missing)} of {count} parts are missing: {missing[0]} (download them)")
    return parts


def _joined(path: str, files: list[GgufFile]) -> dict[str, GgufTensor]:
    stored: dict[str, GgufTensor] = {}
    for file in files:
        for name in file.tensors.keys() & stored.keys():
            raise CheckpointError(f"{file.file.path}: {name} is also in another part (download the parts again)")
        stored |= file.tensors
    if not stored:
        raise CheckpointError(f"{path}: holds no tensors (it may be a vocabulary only)")
    return stored


def _entries(
    path: str, own: str, tensor: GgufTensor, architecture: Architecture, config: Mapping[str, Any]
) -> Iterator[tuple[str, TensorEntry]]:
    target = architecture.name_of(own)
    if target is None:
        raise CheckpointError(f"{path}: {own} is no tensor of {architecture.model_type} that is known here")
    if "{}" not in target:
        yield target, _entry(own, tensor, architecture, config)
        return
    if len(tensor.shape) != 3 or not tensor.shape[0]:
        raise CheckpointError(f"{path}: {own} has shape {list(tensor.shape)}, expected stacked experts")
    experts = tensor.shape[0]
    nbytes = tensor.nbytes // experts
    for i in range(experts):
        one = tensor._replace(offset=tensor.offset + i * nbytes, nbytes=nbytes, shape=tensor.shape[1:])
        yield target.format(i), _entry(own, one, architecture, config)


def _entry(own: str, tensor: GgufTensor, architecture: Architecture, config: Mapping[str, Any]) -> TensorEntry:
    path, offset, nbytes, kind, shape = tensor
    heads = _heads(own, architecture, config, shape)
    shift = -1.0 if architecture.shifted and own.endswith("norm.weight") else 0.0
    if kind in FLOATS and not heads and not shift:
        return TensorEntry(path, offset, nbytes, FLOATS[kind], shape)
    title, elements, size = TYPES[kind]
    columns = shape[-1] if shape else 1
    if heads and len(shape) == 1:  # a bias: its values are the rows
        rows, width = columns, size
    else:
        rows, width = (nbytes // (columns // elements * size) if columns else 0), columns // elements * size
    codes = TensorEntry(path, offset, nbytes, torch.uint8, (rows, width))
    dtype = FLOATS.get(kind, torch.float32) if not shift else torch.float32
    decoder = _Vector(kind, heads) if heads and len(shape) == 1 else GgufValues(kind, heads, shift)
    return TensorEntry(
        path, offset, nbytes, dtype, shape, Coded(f"gguf {title}", (Part(codes, by_row=not heads),), decoder)
    )


class _Vector(GgufValues):
    """Decoder of a bias whose values are permuted: one row that is all of them."""

    def decode(self, out: torch.Tensor, parts: Any, first: int) -> None:
        column = torch.empty(out.shape[1], 1, dtype=out.dtype, device=out.device)
        super().decode(column, parts, 0)
        out.copy_(column.T)


def _heads(own: str, architecture: Architecture, config: Mapping[str, Any], shape: tuple[int, ...]) -> int:
    """Return the heads whose rows llama.cpp reordered, 0 for other tensors."""
    part = own.rpartition(".")[0].rpartition(".")[2]
    if not architecture.permuted or part not in ("attn_q", "attn_k"):
        return 0
    key = "num_attention_heads" if part == "attn_q" else "num_key_value_heads"
    heads = config.get(key) or config.get("num_attention_heads")
    rows = shape[0] if shape else 0
    if not isinstance(heads, int) or heads < 1 or rows % (2 * heads):
        raise CheckpointError(f"{own} has {rows} rows, which {heads!r} heads of the config do not divide into pairs")
    return heads


def _config(path: str, metadata: Mapping[str, Any], stored: Mapping[str, GgufTensor], tied: bool) -> dict[str, Any]:
    config = config_of(metadata, tied)
    missing = [key for key in ("num_hidden_layers", "hidden_size", "num_attention_heads") if not config.get(key)]
    if missing:
        raise CheckpointError(f"{path}: its metadata have no {', '.join(missing)} (put config.json beside the file)")
    embedding = stored.get("token_embd.weight")
    if embedding is not None and len(embedding.shape) == 2:
        config["vocab_size"] = embedding.shape[0]
    freqs = stored.get("rope_freqs.weight")
    if freqs is not None and freqs.kind == 0 and freqs.nbytes >= 4:
        # Llama 3.1 and later: the lowest frequencies are divided by the factor; the other settings never differed.
        with open(freqs.path, "rb") as file:
            file.seek(freqs.offset + freqs.nbytes - 4)
            (factor,) = struct.unpack("<f", file.read(4))
        config["rope_scaling"] = {
            "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }  # fmt: skip
    return config
