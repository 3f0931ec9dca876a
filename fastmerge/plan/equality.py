"""Whether tensors hold the same values, where their bytes can tell; this reads data while a merge is planned."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .models import OpenModel
from .types import InputTensor

_BLOCK = 1 << 22
_PROBES = 16
_PROBE = 1 << 12


def is_copy_of_embedding(model: OpenModel, tensor: InputTensor) -> bool:
    """True for another tensor of a model that holds the bytes of its embedding. Reads both, unless a sample differs."""
    embedding = model.embedding
    return embedding is not None and tensor is not embedding and equal_values((tensor, embedding))


def equal_values(tensors: Sequence[InputTensor]) -> bool:
    """True for tensors of one shape, dtype and value; decoded, summed and gathered ones only if they are one."""
    first, *others = tensors
    if any(tensor.gathered for tensor in tensors):
        return all(other == first for other in others)
    if any((other.shape, other.dtype) != (first.shape, first.dtype) for other in others):
        return False
    places = {(tensor.path, tensor.offset, tensor.nbytes) for tensor in tensors}
    if not all(tensor.plain for tensor in tensors):
        made_of = [(tensor.coded, tensor.adapters) for tensor in tensors]
        return len(places) == 1 and all(parts == made_of[0] for parts in made_of)
    return all(_equal_ranges(min(places), place) for place in places if place != min(places))


def _equal_ranges(one: tuple[str, int, int], other: tuple[str, int, int]) -> bool:
    """Compare two ranges of files, a sample of small blocks first, because most ranges that differ do so everywhere."""
    (path, start, nbytes), (path2, start2, nbytes2) = one, other
    if nbytes != nbytes2:
        return False
    sample = ((i * nbytes // _PROBES, _PROBE) for i in range(_PROBES)) if nbytes > _PROBES * _PROBE else ()
    whole = ((at, _BLOCK) for at in range(0, nbytes, _BLOCK))
    with open(path, "rb") as left, open(path2, "rb") as right:
        return all(
            os.pread(left.fileno(), min(count, nbytes - at), start + at)
            == os.pread(right.fileno(), min(count, nbytes - at), start2 + at)
            for blocks in (sample, whole)
            for at, count in blocks
        )
