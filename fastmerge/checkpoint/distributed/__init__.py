"""Checkpoints of torch.distributed.checkpoint (DCP): ``.metadata`` with ``.distcp`` files, or shards of safetensors.

Nothing of torch is loaded for them, and no pickle is run: both kinds of pickle in them are read by ``restricted``.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Collection
from typing import Any

from ..types import Checkpoint

__all__ = [
    "METADATA",
    "SEPARATOR",
    "SHARDING_INFO",
    "is_distributed",
    "is_distributed_place",
    "open_distributed",
    "split_key",
    "with_key",
]

METADATA = ".metadata"
SEPARATOR = "::"
SHARDING_INFO = "DCP_SHARDING_INFO"
"""Key in the metadata of a safetensors file that holds parts of tensors."""
_SHARDS = "shard-*-model-*-of-*.safetensors"


def split_key(place: str) -> tuple[str, str | None]:
    """Return a folder and the key in it that ``FOLDER::KEY`` names; a place that exists as it is has none."""
    folder, separator, key = place.rpartition(SEPARATOR)
    if not separator or not folder or not key or os.path.lexists(os.path.expanduser(place)):
        return place, None
    return folder, key


def with_key(folder: str, key: str) -> str:
    """Return how the model under a key of a folder is named; "" is a model without one."""
    return f"{folder}{SEPARATOR}{key}" if key else folder


def is_distributed(names: Collection[str]) -> bool:
    """True for the names in a folder that DCP wrote."""
    return METADATA in names or bool(fnmatch.filter(names, _SHARDS))


def is_distributed_place(place: str) -> bool:
    """True for a folder that DCP wrote, with or without a key behind it."""
    folder, _ = split_key(place)
    return os.path.isdir(folder) and is_distributed(os.listdir(folder))


def open_distributed(folder: str, key: str | None, config: dict[str, Any] | None) -> Checkpoint:
    """Read what a folder says of its tensors; see ``reading.open_dcp`` and ``shards.open_shards``."""
    names = os.listdir(folder)
    if METADATA in names:
        from .reading import open_dcp

        return open_dcp(folder, key, config)
    from .shards import open_shards

    return open_shards(folder, key, config, sorted(fnmatch.filter(names, _SHARDS)))
