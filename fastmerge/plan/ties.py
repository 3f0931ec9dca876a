"""Tensors that are one in the model: second embeddings and heads that hold the bytes of the embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .equality import is_copy_of_embedding
from .rows import Row


def tied_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with those that copy the embedding in every model merged as the embedding is.

    Methods that draw random numbers by the name of a tensor would tear apart what is one tensor in the model.
    """
    leaders: dict[int, Row] = {}
    for row in rows:
        models = row.members.models.every
        if row.members.part.method.random and all(t is m.embedding for t, m in row.pairs):
            leaders[models[0].index] = row
    return [_tied(row, leaders) for row in rows]


def _tied(row: Row, leaders: dict[int, Row]) -> Row:
    leader = leaders.get(row.members.models.every[0].index)
    if leader is None or leader is row or leader.members is not row.members:
        return row
    if all(is_copy_of_embedding(model, tensor) for tensor, model in row.pairs):
        return replace(row, like=leader.name)
    return row
