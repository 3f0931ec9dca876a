"""The stored tensors of a quantized checkpoint, and what its configs say of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from ...dtypes import DType, int32, int64
from ...errors import CheckpointError
from ..folder import read_json
from ..types import Checkpoint, Coded, Part, TensorEntry

# Tensors that hold a description, not weights, are read while a merge is planned.
MOST_BYTES = 1 << 16

# Dtypes in which the group of a column is stored.
INDEXES = (int32, int64)

CONFIG_KEYS = ("quantization_config", "compression_config", "quantization")
_INNER = ("text_config", "llm_config", "language_config", "thinker_config", "vision_config", "audio_config")
_BESIDE = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")


class Found(NamedTuple):
    """A quantized tensor: its name in the model, its entry, and the stored tensors that it consists of."""

    name: str
    entry: TensorEntry
    stored: tuple[str, ...]


class Stored:
    """Attributes:
    tensors:  stored tensors by name.
    settings: every quantization section of the config, the outer one first, and of files beside it.
    model_type: of the config, "" where it does not say.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.folder = checkpoint.folder
        self.tensors = checkpoint.tensors
        config = checkpoint.config or {}
        said = config.get("model_type")
        self.model_type = said if isinstance(said, str) else ""
        self.settings = list(sections(config))
        if not self.settings:
            self.settings = list(self._beside())

    def _beside(self) -> Iterator[Mapping[str, Any]]:
        for name in _BESIDE:
            found = read_json(os.path.join(self.folder, name), missing_ok=True)
            if found:
                inner = found.get("quantization")
                yield inner if isinstance(inner, dict) else found

    def setting(self, *keys: str) -> Any:
        """Return the first value that a section has for one of the keys, or None."""
        for section in self.settings:
            for key in keys:
                if section.get(key) is not None:
                    return section[key]
        return None

    def of_weights(self, key: str) -> list[Any]:
        """Return what the config groups of compressed-tensors say of weights under ``key``, without repeats."""
        groups = self.setting("config_groups")
        schemes = groups.values() if isinstance(groups, dict) else ()
        weights = [scheme.get("weights") for scheme in schemes if isinstance(scheme, dict)]
        values = [found.get(key) for found in weights if isinstance(found, dict)]
        return [value for i, value in enumerate(values) if value is not None and value not in values[:i]]

    @property
    def method(self) -> str:
        """Name of the quantization method as the config has it, in lower case; "" where it has none."""
        return str(self.setting("quant_method") or "").lower()

    def get(self, name: str) -> TensorEntry | None:
        return self.tensors.get(name)

    def need(self, name: str, owner: str) -> TensorEntry:
        """Return a stored tensor; CheckpointError names it and the codes that need it."""
        entry = self.tensors.get(name)
        if entry is None:
            raise CheckpointError(f"{self.folder}: {owner} needs {name}, which is missing (download the model again)")
        return entry

    def described(self, name: str) -> bytes:
        """Return the bytes of a tensor that describes another."""
        entry = self.tensors[name]
        if entry.nbytes > MOST_BYTES:
            raise self.wrong(name, f"has {entry.nbytes} bytes, too many for a description")
        try:
            with open(entry.path, "rb") as file:
                file.seek(entry.offset)
                data = file.read(entry.nbytes)
        except OSError as error:
            raise CheckpointError(f"{entry.path}: cannot be read: {error.strerror}") from error
        if len(data) != entry.nbytes:
            raise CheckpointError(f"{entry.path}: ends inside {name} (download it again)")
        return data

    def integers(self, name: str) -> tuple[int, ...]:
        """Return the values of a small integer tensor."""
        entry = self.tensors[name]
        if entry.dtype.is_floating_point or entry.dtype.is_complex:
            raise self.wrong(name, f"is {entry.dtype}, expected integers")
        data = self.described(name)
        return tuple(np.frombuffer(data, entry.dtype.name).tolist())

    def json(self, name: str) -> dict[str, Any]:
        """Return the JSON object whose bytes a tensor holds."""
        try:
            value = json.loads(self.described(name))
        except (ValueError, RecursionError) as error:
            raise self.wrong(name, f"holds no JSON: {error}") from error
        if not isinstance(value, dict):
            raise self.wrong(name, "holds no JSON object")
        return value

    def wrong(self, name: str, what: str) -> CheckpointError:
        """Return the error that a stored tensor is not what its format says."""
        entry = self.tensors[name]
        return CheckpointError(f"{entry.path}: {name} {what} (the quantized model is damaged, or of another format)")


def levels(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a config, and the configs in it that may say that the weights are quantized."""
    yield config
    yield from (config[key] for key in _INNER if isinstance(config.get(key), dict))


def sections(config: dict[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the quantization sections of a config and of the config of its language model."""
    for level in levels(config):
        for key in CONFIG_KEYS:
            section = level.get(key)
            if section:
                yield section if isinstance(section, dict) else {"quant_method": section}


def coded(dtype: DType, shape: tuple[int, ...], scheme: Coded) -> TensorEntry:
    """Return the entry of a quantized tensor."""
    codes = scheme.parts[0].entry
    return TensorEntry(codes.path, codes.offset, codes.nbytes, dtype, shape, scheme)


def whole(entry: TensorEntry) -> Part:
    """Return a part that is needed as a whole."""
    return Part(entry, by_row=False)


def is_count(value: Any) -> TypeGuard[int]:
    """True for a number of things: JSON has floats and truth values, too, where a count is meant."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
