"""Output heads: some checkpoints have one of their own, others tie it to the embedding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .models import OpenModel, is_head
from .slices import Key
from .types import InputTensor

Table = dict[str, InputTensor]


def settle_heads(
    tables: Mapping[Key, Table],
    models: Mapping[Key, OpenModel],
    every: Sequence[OpenModel],
    dropped: dict[tuple[int, str], str],
) -> tuple[dict[Key, Table], bool]:
    """Give every table an output head, or none of them one.

    A model that ties its head to its embedding has no tensor for it. Where any model has a head of its own, the tied
    ones take part with their embedding; where all are tied, redundant copies are left out.

    Args:
        tables:  tensors by name of the models of a slice.
        models:  the models.
        every:   those of all slices.
        dropped: gets the reason for a copy that is left out.
    Returns:
        The tables, and True where the output's head is not tied to its embedding.
    """
    settled = {key: dict(table) for key, table in tables.items()}
    untied = False
    for name in sorted(_heads(every)):
        having = [model for model in every if name in model.outside]
        if all(model.says_tied for model in having) and len(having) < len(every):
            for key, table in settled.items():
                if table.pop(name, None):
                    dropped[models[key].index, name] = "every model ties it to the embedding"
            continue
        for key, table in settled.items():
            model = models[key]
            if name not in table and model.says_tied is not False and model.embedding is not None:
                table[name] = model.embedding
        untied = untied or not all(model.says_tied for model in having)
    return settled, untied


def _heads(models: Iterable[OpenModel]) -> set[str]:
    return {name for model in models for name in model.outside if is_head(name)}
