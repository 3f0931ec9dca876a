"""Opens a checkpoint: a folder in the Hugging Face layout (a single file, or shards with an index), or another."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import CheckpointError
from .distributed import SHARDING_INFO, is_distributed_place, open_distributed, split_key
from .file_names import INDEX, SINGLE
from .foreign import describe
from .gguf import models_in, open_gguf
from .locate import WEIGHT_FILES
from .opening import check_characters, read_text
from .placeholders import placeholder
from .safetensors_header import read_header
from .types import Checkpoint, InputFile, TensorEntry


def open_checkpoint(folder: str) -> Checkpoint:
    """Read the headers of the weights in ``folder``. safetensors is preferred to ``.bin``, a single file to an index.

    ``folder`` may be a file of weights, with its config beside it; hold a single GGUF file and nothing else; or be of
    torch.distributed.checkpoint, with the key of the model in its state behind it (``FOLDER::KEY``).

    Raises:
        CheckpointError: no weights, a corrupt file, or an index that disagrees with its shards.
    """
    folder, key = split_key(os.path.abspath(folder))
    if key is not None and not is_distributed_place(folder):
        raise CheckpointError(
            f"{folder}: is no checkpoint of torch.distributed.checkpoint, so it has no key {key} (leave it out)"
        )
    if folder.endswith(WEIGHT_FILES) and not os.path.isdir(folder):
        home = os.path.dirname(folder)
        config = read_json(os.path.join(home, "config.json"), missing_ok=True)
        if folder.endswith(".gguf"):
            return open_gguf(folder, config)
        file, tensors = read_weights(folder)
        return _checked(Checkpoint(home, (file,), tensors, config, source=folder))
    config = read_json(os.path.join(folder, "config.json"), missing_ok=True)
    if key is not None:
        return open_distributed(folder, key, config)
    for single, index in zip(SINGLE, INDEX, strict=True):
        if os.path.lexists(os.path.join(folder, single)):
            file, tensors = read_weights(os.path.join(folder, single))
            notes = (*_stale(folder, single, index, tensors), *_second_format(folder, single))
            return _checked(Checkpoint(folder, (file,), tensors, config, notes))
        if os.path.lexists(os.path.join(folder, index)):
            files, tensors = _read_sharded(folder, index)
            notes = (*_unlisted(folder, files), *_second_format(folder, index))
            return _checked(Checkpoint(folder, files, tensors, config, notes))
    if (gguf := only_gguf(folder)) is not None:
        return open_gguf(gguf, config)
    if is_distributed_place(folder):
        return open_distributed(folder, None, config)
    if os.path.exists(os.path.join(folder, "adapter_config.json")):
        raise CheckpointError(f"{folder}: is a LoRA adapter, not a model (name it behind its base, as model+adapter)")
    found = "".join(f"; found {text}" for text in describe(folder))
    raise CheckpointError(f"{folder}: no weights; expected one of {', '.join(SINGLE + INDEX)}{found}")


def only_gguf(folder: str) -> str | None:
    """Return the GGUF file of a folder that holds one model in this format (the first of its parts)."""
    models = models_in(os.listdir(folder))
    return os.path.join(folder, models[0][0]) if len(models) == 1 else None


def _stale(folder: str, single: str, index: str, tensors: Mapping[str, TensorEntry]) -> Iterator[str]:
    """Yield a note on an index beside the single file that is read; refuse a file that holds only a part of it."""
    index_path = os.path.join(folder, index)
    if not os.path.exists(index_path):
        return
    listed = (read_json(index_path) or {}).get("weight_map")
    shards: dict[str, Any] = listed if isinstance(listed, dict) else {}
    both = f"{folder}: {single} ({len(tensors)} tensors) and {index} ({len(shards)} tensors) are both there"
    there = any(os.path.exists(os.path.join(folder, str(name))) for name in set(map(str, shards.values())))
    if there and shards.keys() - tensors.keys():
        raise CheckpointError(f"{both} and differ: one of them is left from an earlier save (delete that one)")
    yield f"{both}; {single} is read, as transformers does: delete it if it is left from an earlier save"


def _unlisted(folder: str, files: Sequence[InputFile]) -> Iterator[str]:
    """Yield a note on files that look like shards of the model, but that its index does not name."""
    read = {os.path.basename(file.path) for file in files}
    others = sorted(set(fnmatch.filter(os.listdir(folder), "model-?????-of-?????.safetensors")) - read)
    if others:
        yield f"{folder}: {others[0]}{', ...' if len(others) > 1 else ''} is not in the index and is not read"


def _second_format(folder: str, read: str) -> Iterator[str]:
    """Yield a note on weights in PyTorch's format beside those that are read, which may be older or newer."""
    others = [name for name in (SINGLE[1], INDEX[1]) if os.path.lexists(os.path.join(folder, name))]
    if read in (SINGLE[0], INDEX[0]) and others:
        yield f"{folder}: {read} is read, and not {others[0]}, which is there as well"


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    """Refuse files whose header says that their tensors are something else than a model's weights."""
    for file in checkpoint.files:
        if SHARDING_INFO in file.metadata:
            raise CheckpointError(
                f"{file.path}: holds parts of tensors, as torch.distributed.checkpoint saves them (join them with "
                "torch.distributed.checkpoint._consolidate_hf_safetensors.consolidate_safetensors_files)"
            )
        if file.metadata.get("format") in ("tf", "flax"):
            raise CheckpointError(
                f"{file.path}: holds weights in the layout of {file.metadata['format']} (load them in transformers 4 "
                f"with from_{file.metadata['format']}=True and save the model)"
            )
    return checkpoint


def read_weights(path: str) -> tuple[InputFile, dict[str, TensorEntry]]:
    """Return the identity and the tensors of one weight file, by its ending."""
    if path.endswith(".safetensors"):
        return read_header(path)
    from .torch_zip import read_torch_zip

    return read_torch_zip(path)


def read_json(path: str, missing_ok: bool = False, expected: type = dict) -> Any:
    """Return the object (or a list, if ``expected``) in a JSON file, or None where it is missing and ``missing_ok``."""
    try:
        text = read_text(path)
        value = json.loads(text)
        check_characters(text, value)
    except FileNotFoundError as error:
        if missing_ok and not os.path.islink(path):
            return None
        raise CheckpointError(f"{path}: {placeholder(path) or 'does not exist'}") from error
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {placeholder(path) or f'is not valid JSON: {error}'}") from error
    if not isinstance(value, expected):
        raise CheckpointError(f"{path}: is not a JSON {'object' if expected is dict else 'list'}")
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
        if not os.path.lexists(path):
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
