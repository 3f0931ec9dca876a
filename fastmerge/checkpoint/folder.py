"""A checkpoint folder in the Hugging Face layout: single file, or shards with an index."""

from __future__ import annotations

import json
import os
from typing import Any

from ..errors import CheckpointError
from .safetensors_header import read_header
from .torch_zip import read_torch_zip
from .types import Checkpoint, InputFile, TensorEntry

SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def open_checkpoint(folder: str) -> Checkpoint:
    """Read the headers of the weights in ``folder``. safetensors is preferred to ``.bin``, a single file to an index.

    Raises:
        CheckpointError: no weights, a corrupt file, or an index that disagrees with its shards.
    """
    folder = os.path.abspath(folder)
    config = read_json(os.path.join(folder, "config.json"), missing_ok=True)
    for single, index in zip(SINGLE, INDEX, strict=True):
        if os.path.exists(os.path.join(folder, single)):
            file, tensors = read_weights(os.path.join(folder, single))
            return Checkpoint(folder, (file,), tensors, config)
        if os.path.exists(os.path.join(folder, index)):
            files, tensors = _read_sharded(folder, index)
            return Checkpoint(folder, files, tensors, config)
    if os.path.exists(os.path.join(folder, "adapter_config.json")):
        raise CheckpointError(f"{folder}: is a LoRA adapter, not a model (write it in the recipe as model+adapter)")
    raise CheckpointError(f"{folder}: no weights; expected one of {', '.join(SINGLE + INDEX)}")


def read_weights(path: str) -> tuple[InputFile, dict[str, TensorEntry]]:
    """Return the identity and the tensors of one weight file, by its ending."""
    return read_header(path) if path.endswith(".safetensors") else read_torch_zip(path)


def read_json(path: str, missing_ok: bool = False) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None where it does not exist and ``missing_ok``."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except FileNotFoundError as error:
        if missing_ok:
            return None
        raise CheckpointError(f"{path}: does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: is not a JSON object")
    return value


def _read_sharded(folder: str, index: str) -> tuple[tuple[InputFile, ...], dict[str, TensorEntry]]:
    index_path = os.path.join(folder, index)
    weight_map = (read_json(index_path) or {}).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index_path}: weight_map does not map tensor names to file names")
    files: list[InputFile] = []
    tensors: dict[str, TensorEntry] = {}
    home: dict[str, str] = {}
    for filename in sorted(set(weight_map.values())):
        # Lexical, because the files of the hub's cache are links that lead out of their folder.
        if os.path.isabs(filename) or os.path.normpath(filename).startswith(".."):
            raise CheckpointError(
                f"{index_path}: points outside its folder: {filename!r} (do not trust this checkpoint)"
            )
        path = os.path.join(folder, filename)
        if not os.path.exists(path):
            count = sum(shard == filename for shard in weight_map.values())
            raise CheckpointError(
                f"{index_path}: {filename} is missing, it should hold {count} tensors (download it again)"
            )
        file, found = read_weights(path)
        files.append(file)
        for name in found.keys() & home.keys():
            raise CheckpointError(f"{path}: {name} is also in {home[name]} (save the checkpoint again)")
        home.update(dict.fromkeys(found, filename))
        tensors.update(found)
    for what, names in (
        ("are in its shards but not in the index", home.keys() - weight_map.keys()),
        ("are not in any shard", weight_map.keys() - home.keys()),
        ("are in another shard than it says", {n for n in weight_map.keys() & home.keys() if weight_map[n] != home[n]}),
    ):
        if names:
            raise CheckpointError(
                f"{index_path}: {len(names)} tensors {what}: {', '.join(sorted(names)[:5])} (save the checkpoint again)"
            )
    return tuple(files), tensors
