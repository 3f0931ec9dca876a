"""Whether tensors hold the same values, where their bytes can tell; this reads data while a merge is planned."""

from __future__ import annotations

from collections.abc import Sequence

from .models import OpenModel
from .stored import Stored
from .types import InputTensor

_BLOCK = 1 << 22
_PROBES = 16
_PROBE = 1 << 12


def is_copy_of_embedding(model: OpenModel, tensor: InputTensor) -> bool:
    """True for another tensor of a model that holds the bytes of its embedding. Reads both, unless a sample differs."""
    embedding = model.embedding
    return embedding is not None and tensor is not embedding and equal_values((tensor, embedding), (model, model))


def equal_values(tensors: Sequence[InputTensor], models: Sequence[OpenModel]) -> bool:
    """True for tensors of one shape, dtype and value; decoded, summed and gathered ones only if they are one.

    ``models`` are those that the tensors are of, each with its own.
    """
    first, *others = tensors
    if any(tensor.gathered for tensor in tensors):
        return all(other == first for other in others)
    if any((other.shape, other.dtype) != (first.shape, first.dtype) for other in others):
        return False
    if not all(tensor.plain for tensor in tensors):
        made_of = [(t.path, t.offset, t.nbytes, t.coded, t.adapters) for t in tensors]
        return all(parts == made_of[0] for parts in made_of)
    ranges = [Stored(tensor, model) for tensor, model in zip(tensors, models, strict=True)]
    return all(_equal_ranges(ranges[0], other) for other in ranges[1:])


def _equal_ranges(one: Stored, other: Stored) -> bool:
    """Compare two ranges of bytes, a sample of small blocks first, because most that differ do so everywhere."""
    if one.place == other.place or one.nbytes != other.nbytes:
        return one.nbytes == other.nbytes
    nbytes = one.nbytes
    sample = ((i * nbytes // _PROBES, _PROBE) for i in range(_PROBES)) if nbytes > _PROBES * _PROBE else ()
    whole = ((at, _BLOCK) for at in range(0, nbytes, _BLOCK))
    return all(one.read(at, count) == other.read(at, count) for blocks in (sample, whole) for at, count in blocks)
