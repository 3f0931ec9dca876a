"""The pass over all tensors: on every core, each tensor by one thread, within the budget."""

from __future__ import annotations

from ..engine.reading import DeltaReader, reading_bytes
from .family import Family, Matched
from .journal import Journal, Known
from .matrices import ranks, ranks_bytes
from .measures import measure, measure_bytes
from .spreading import spread

__all__ = ["delta_nbytes", "nbytes_of_survey", "needs_of", "survey"]


def survey(family: Family, reader: DeltaReader, journal: Journal, exact: bool, workers: int) -> dict[str, Known]:
    """Return what is found of every tensor, in the family's order; the journal learns of each as it is known."""
    found = dict(journal.known)
    reader.tell(sum(nbytes_of_survey(tensor) for tensor in family.tensors if tensor.name in found))

    def look(tensor: Matched) -> None:
        measured = measure(reader, tensor.base, tensor.models, family.labels)
        known = Known(measured, ranks(reader, tensor, exact) if tensor.is_matrix else None)
        journal.add(tensor.name, known)
        found[tensor.name] = known

    spread([tensor for tensor in family.tensors if tensor.name not in found], look, _work, workers)
    return {tensor.name: found[tensor.name] for tensor in family.tensors}


def _work(tensor: Matched) -> int:
    return tensor.base.numel * (4 if tensor.is_matrix else 1)


def needs_of(family: Family, exact: bool) -> list[tuple[int, str]]:
    """Return the bytes that each tensor takes at most, and what takes them."""
    return [_needed(tensor, exact) for tensor in family.tensors]


def _needed(tensor: Matched, exact: bool) -> tuple[int, str]:
    """Return the bytes that the tensor takes at most, and what takes them."""
    steps = [(measure_bytes(len(tensor.models), tensor.base.numel), "counting changes and signs")]
    if tensor.is_matrix:
        steps.append((ranks_bytes([tensor], exact), "stable ranks"))
    need, step = max(steps)
    return reading_bytes([tensor.group]) + need, step


def nbytes_of_survey(tensor: Matched) -> int:
    """Return the bytes that are read of a tensor: once, and once more by models where it is a matrix."""
    nbytes = sum(part.nbytes for part in tensor.group)
    return nbytes + delta_nbytes(tensor) if tensor.is_matrix else nbytes


def delta_nbytes(tensor: Matched) -> int:
    """Return the bytes read where the delta of every model is formed in turn."""
    return sum(tensor.base.nbytes + model.nbytes for model in tensor.models)
