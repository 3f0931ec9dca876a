"""What is known of a checkpoint from its headers: files, and where each tensor lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch


class TensorEntry(NamedTuple):
    """Where a tensor lies: ``nbytes`` bytes of the file ``path`` from ``offset``, contiguous, row-major."""

    path: str
    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class InputFile:
    """Identity of an input file, as the manifest and the journal record it.

    Attributes:
        metadata: what a safetensors header says beside its tensors (``__metadata__``); not part of the identity.
    """

    path: str
    nbytes: int
    mtime_ns: int
    header_digest: str
    metadata: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Checkpoint:
    """A folder of weights, read from headers alone.

    Attributes:
        folder:  absolute path.
        files:   the weight files, in the order of their names.
        tensors: every tensor by name, in the order of file and offset.
        config:  ``config.json``, or None where the folder has none.
        notes:   what its user should know, one sentence each.
    """

    folder: str
    files: tuple[InputFile, ...]
    tensors: dict[str, TensorEntry]
    config: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
