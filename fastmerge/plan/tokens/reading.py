"""The vocabulary of one model: ids by token, how added tokens behave, and how many rows the embedding has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...checkpoint import read_json
from ...checkpoint.layers import TEXT_CONFIGS
from ...checkpoint.vocabulary import Vocabulary
from ..models import OpenModel

PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
"""How a token behaves that is added by its text alone."""


@dataclass(frozen=True)
class ModelVocabulary:
    """The tokens of a model.

    Attributes:
        model: that has them.
        file:  that says so; None for a model without a tokenizer, which is taken to have the base's.
        ids:   by token.
        added: how the tokens behave that were added to the vocabulary, by token, in the order of their ids.
        size:  rows of the embedding; tokens with this id or a larger one have none.
    """

    model: OpenModel
    file: Vocabulary | None
    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    size: int = 0

    @property
    def known(self) -> dict[str, int]:
        """The tokens that have a row, by id."""
        return {token: i for token, i in sorted(self.ids.items(), key=lambda item: item[1]) if i < self.size}


def read_vocabulary(model: OpenModel, file: Vocabulary) -> ModelVocabulary:
    """Read the vocabulary of a model. Raises CheckpointError where a file is not what its name says."""
    ids: dict[str, int] = {}
    for i, token in sorted(file.tokens().items()):
        ids.setdefault(token, i)
    return ModelVocabulary(model, file, ids, _added(file, ids), size_of(model, ids))


def size_of(model: OpenModel, ids: Mapping[str, int]) -> int:
    """Return the rows of a model's embedding, as its config and its weights have them."""
    config = model.checkpoint.config or {}
    levels = [level for level in (*(config.get(key) for key in TEXT_CONFIGS), config) if isinstance(level, dict)]
    stated = next((size for level in levels if isinstance(size := level.get("vocab_size"), int)), None)
    rows = [] if model.embedding is None else [model.embedding.shape[0]]
    sizes = [*rows, *([] if stated is None else [stated])]
    return max(0, min(sizes, default=1 + max(ids.values(), default=-1)))


def _added(file: Vocabulary, ids: Mapping[str, int]) -> dict[str, Mapping[str, Any]]:
    folder = os.path.dirname(file.path)
    if file.kind == "tokenizer.json":
        entries = (read_json(file.path) or {}).get("added_tokens") or []
    else:
        config = read_json(os.path.join(folder, "tokenizer_config.json"), missing_ok=True) or {}
        plain = read_json(os.path.join(folder, "added_tokens.json"), missing_ok=True) or {}
        entries = [{**PLAIN, "content": token, "id": i} for token, i in plain.items()]
        entries += [{**entry, "id": int(i)} for i, entry in (config.get("added_tokens_decoder") or {}).items()]
    settings: dict[str, Mapping[str, Any]] = {}
    for entry in sorted(entries, key=lambda entry: int(entry["id"])):
        if entry["content"] in ids:
            settings[entry["content"]] = {key: entry.get(key, default) for key, default in PLAIN.items()}
    return settings
