"""Output heads: some checkpoints have one of their own, others tie it to the embedding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .equality import is_copy_of_embedding
from .findings import Findings
from .models import OpenModel, is_head
from .slices import Key
from .types import InputTensor

Table = dict[str, InputTensor]


def settle_heads(
    tables: Mapping[Key, Table],
    models: Mapping[Key, OpenModel],
    every: Sequence[OpenModel],
    dropped: dict[tuple[int, str], str],
    findings: Findings,
) -> tuple[dict[Key, Table], bool | None]:
    """Give every table an output head, or none of them one.

    A model ties its head to its embedding when it has no tensor for it, or one with the embedding's bytes. A head that
    differs is the model's own, whatever its config says: transformers 5 loads it so. Where any model has a head of its
    own, the tied ones take part with their embedding; where all are tied, copies are left out.

    Args:
        tables:   tensors by name of the models of a slice.
        models:   the models.
        every:    those of all slices.
        dropped:  gets the reason for a copy that is left out.
        findings: gets a note where config and tensors disagree.
    Returns:
        The tables, and whether the output's head is tied to its embedding; None where there is no head to decide on.
    """
    settled = {key: dict(table) for key, table in tables.items()}
    tied: bool | None = None
    for name in sorted(_heads(every)):
        having = [model for model in every if name in model.outside]
        copies = [model for model in having if _ties(model, name)]
        without = [model for model in every if model not in having]
        if copies == having and all(model.says_tied is not False for model in without) and _can_say(every):
            for key, table in settled.items():
                if table.pop(name, None):
                    dropped[models[key].index, name] = "it is a copy of the embedding, to which every model ties it"
            tied = True if tied is None else tied
            continue
        tied = False
        for key, table in settled.items():
            model = models[key]
            if name not in table and model.says_tied is not False and model.embedding is not None:
                table[name] = model.embedding
        for model in having:
            if model.says_tied and model not in copies:
                findings.note(
                    f"{model.checkpoint.folder}: the config ties the head to the embedding, but {name} differs from "
                    "it; it is merged as a head of its own, as transformers 5 loads it (older versions and other tools "
                    "take the embedding)"
                )
    return settled, tied


def _ties(model: OpenModel, name: str) -> bool:
    return model.says_tied is not False and is_copy_of_embedding(model, model.outside[name])


def _can_say(models: Sequence[OpenModel]) -> bool:
    """True where a config can tell that the head is tied."""
    return all(model.checkpoint.config is not None for model in models)


def _heads(models: Iterable[OpenModel]) -> set[str]:
    return {name for model in models for name in model.outside if is_head(name)}
