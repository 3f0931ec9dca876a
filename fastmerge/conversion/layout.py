"""Which tensors a GGUF file gets: names, types, rows and experts as llama.cpp's converter has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..checkpoint import Checkpoint, TensorEntry
from ..checkpoint.gguf.architectures import ARCHITECTURES, Architecture
from ..checkpoint.gguf.header import TYPES
from ..dtypes import bfloat16, float16, float32
from ..errors import CheckpointError

__all__ = ["KINDS", "Written", "architecture_of", "lay_out", "main_kind"]

KINDS = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8}
"""GGML's types that are written, by name."""

_OF_DTYPE = {float32: "f32", float16: "f16", bfloat16: "bf16"}
_Q8_0, _F16, _F32 = KINDS["q8_0"], KINDS["f16"], KINDS["f32"]
_OF_MODEL = {known.model_type: name for name, known in ARCHITECTURES.items()} | {"mistral": "llama", "mixtral": "llama"}


@dataclass(frozen=True)
class Written:
    """One tensor of the file.

    Attributes:
        name:    in GGUF.
        kind:    GGML's type.
        shape:   row-major.
        sources: the tensors of the checkpoint that it is made of: one, or all experts.
        heads:   heads whose rows are reordered; 0 leaves rows where they are.
        shift:   is added, in float32.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    sources: tuple[TensorEntry, ...]
    heads: int = 0
    shift: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes that its values take in the file."""
        _, elements, nbytes = TYPES[self.kind]
        return math.prod(self.shape) // elements * nbytes


def architecture_of(checkpoint: Checkpoint) -> str:
    """Return the GGUF architecture of a checkpoint.

    Raises:
        CheckpointError: it has no config, or is of a model that is not converted.
    """
    kind = (checkpoint.config or {}).get("model_type")
    if not isinstance(kind, str) or kind not in _OF_MODEL:
        known = ", ".join(_OF_MODEL)
        raise CheckpointError(
            f"{checkpoint.place}: model_type is {kind!r:.50}; converted are {known} (take llama.cpp's converter)"
        )
    return _OF_MODEL[kind]


def main_kind(checkpoint: Checkpoint) -> str:
    """Return the type that holds the values of a checkpoint: that of most of its bytes, bf16 for quantized ones."""
    sizes: dict[str, int] = {}
    for entry in checkpoint.tensors.values():
        kind = "bf16" if entry.quantized else _OF_DTYPE.get(entry.dtype, "f32")
        sizes[kind] = sizes.get(kind, 0) + entry.nbytes
    return max(sizes, key=lambda kind: sizes[kind], default="f32")


def lay_out(checkpoint: Checkpoint, name: str, kind: str, heads: Callable[[str], int]) -> list[Written]:
    """Return the tensors of the file, in the order of the checkpoint.

    Args:
        name:  the architecture.
        heads: gives a number of heads by its key in the metadata, without the architecture.
    Raises:
        CheckpointError: a tensor that the architecture does not have, or of a type that is not converted.
    """
    architecture = ARCHITECTURES[name]
    groups: dict[str, dict[int, TensorEntry]] = {}
    for own, entry in checkpoint.tensors.items():
        if entry.dtype not in _OF_DTYPE:
            raise CheckpointError(f"{checkpoint.place}: {own} is {entry.dtype}, which is not converted")
        found = architecture.gguf_name(own)
        if found is None:
            raise CheckpointError(f"{checkpoint.place}: {own} is no tensor of {name} in GGUF")
        target, expert = found
        groups.setdefault(target, {})[0 if expert is None else expert] = entry
    return [_written(checkpoint, architecture, target, found, KINDS[kind], heads) for target, found in groups.items()]


def _written(
    checkpoint: Checkpoint,
    architecture: Architecture,
    name: str,
    found: Mapping[int, TensorEntry],
    kind: int,
    heads: Callable[[str], int],
) -> Written:
    sources = tuple(found[i] for i in sorted(found))
    shape = sources[0].shape
    if "_exps." in name:
        if sorted(found) != list(range(len(found))) or any(source.shape != shape for source in sources):
            raise CheckpointError(f"{checkpoint.place}: the experts of {name} are not complete, or not of one shape")
        shape = (len(sources), *shape)
    if name.endswith("ffn_gate_inp_shexp.weight"):
        shape = shape[-1:]
    key = architecture.heads_key(name)
    count = heads(key) if key else 0
    if count and (not shape or shape[0] % (2 * count)):
        raise CheckpointError(f"{checkpoint.place}: {name} has {shape[:1]} rows, which are no pairs in {count} heads")
    shift = 1.0 if architecture.is_shifted(name) else 0.0
    return Written(name, _kind(name, shape, kind), shape, sources, count, shift)


def _kind(name: str, shape: Sequence[int], kind: int) -> int:
    """Return the type of a tensor: vectors, norms and routers stay in float32, as llama.cpp wants them."""
    if len(shape) <= 1 or name.endswith("_norm.weight") or ".ffn_gate_inp." in name:
        return _F32
    return _F16 if kind == _Q8_0 and shape[-1] % TYPES[_Q8_0][1] else kind
