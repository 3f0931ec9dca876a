"""The hash of everything that decides the bytes of an output."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ..checkpoint import InputFile
from .types import InputTensor, OutputTensor, Shard

NUMERICS = 1
"""Version of the package's arithmetic: raised when a change makes the same plan write other bytes."""


def digest(
    outputs: Sequence[OutputTensor], shards: Sequence[Shard], files: Sequence[InputFile], semantics: str, seed: int
) -> str:
    """Return the plan's hash. Input files count by size and header, not by path or time."""
    identity = {file.path: f"{file.nbytes}:{file.header_digest}" for file in files}

    def source(tensor: InputTensor) -> str:
        text = f"{identity[tensor.path]}:{tensor.offset}:{tensor.nbytes}:{tensor.dtype}"
        return text + "".join(f"+{a.scale!r}*{source(a.up)}@{source(a.down)}" for a in tensor.adapters)

    hasher = hashlib.sha256(f"fastmerge numerics {NUMERICS} {semantics} {seed}\n".encode())
    for shard in shards:
        hasher.update(f"{shard.filename} {shard.nbytes}\n".encode())
        hasher.update(shard.header)
    for output in outputs:
        values = sorted(output.group.values.items()) if output.group else ()
        inputs = " ".join(source(tensor) for tensor in output.every_input)
        hasher.update(f"{output.name} {output.method} {output.base is None} {values!r} {inputs}\n".encode())
    return hasher.hexdigest()
