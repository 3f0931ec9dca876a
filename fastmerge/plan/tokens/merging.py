"""The vocabulary of the output: the base's, one model's, or the union of all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...checkpoint.vocabulary import Vocabulary, vocabularies
from ...errors import CheckpointError
from ...recipe.types import ModelRef, Recipe, TokenSpec
from ..findings import Findings, listed
from ..models import OpenModel
from ..vocabularies import same_files
from .reading import PLAIN, ModelVocabulary, read_vocabulary, size_of


@dataclass
class MergedVocabulary:
    """The vocabulary of the output, and those of the models.

    Attributes:
        source:  the vocabulary whose files the output takes.
        models:  by index, those of all models.
        ids:     the output's, by token.
        new:     tokens that are added to the source's files, and how they behave; some have an id there already.
        removed: tokens of the source's files that have no row in its model.
        rules:   of single tokens, from the recipe.
        padding: the number of rows is a multiple of this.
        where:   the recipe asks for it.
    """

    source: ModelVocabulary
    models: Mapping[int, ModelVocabulary]
    ids: dict[str, int]
    removed: frozenset[str]
    rules: Mapping[str, TokenSpec]
    padding: int = 1
    where: str = ""
    new: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    size: int = field(init=False)
    """Rows that tokens have."""

    def __post_init__(self) -> None:
        self.size = 1 + max(self.ids.values(), default=-1)

    @property
    def rows(self) -> int:
        """Rows of the output's embedding."""
        return -(-self.size // self.padding) * self.padding

    @property
    def changed(self) -> bool:
        """True where the output's tokenizer is not the source's as it is."""
        return bool(self.new or self.removed)

    def add(self, token: str, behaviour: Mapping[str, Any]) -> None:
        """Add a token, with the next id where it has none."""
        if token not in self.ids:
            self.ids[token] = self.size
            self.size += 1
        self.new[token] = behaviour


def merge_vocabularies(
    recipe: Recipe, models: Mapping[ModelRef, OpenModel], findings: Findings
) -> MergedVocabulary | None:
    """Return the vocabulary that the recipe asks for; None where it asks for none, or after a report.

    A union has the ids of the base, then the other models' tokens, as added tokens: those of their vocabularies first,
    then those that were added there. Tokens that ``tokenizer: tokens`` names come last.
    """
    spec = recipe.tokenizer
    if spec is None:
        return None
    opened = list(models.values())
    read = _read_all(opened, findings)
    if read is None:
        return None
    base, source = read[opened[0].index], read[opened[0].index]
    if isinstance(spec.source, ModelRef):
        if spec.source not in models:
            findings.problem(spec.where, f"{spec.source} is no model of the recipe", "name one")
            return None
        source = read[models[spec.source].index]
        kept = dict(source.ids)
    else:
        kept = base.known
    removed = frozenset(source.ids.keys() - kept.keys())
    rules = {rule.token: rule for rule in spec.tokens}
    merged = MergedVocabulary(source, read, kept, removed, rules, spec.pad_to_multiple_of or 1, spec.where)
    last, dense = max(kept, key=lambda token: kept[token], default=""), len(kept) == merged.size
    if spec.source == "union":
        _unite(merged, list(read.values()))
    for token in rules:
        if token not in merged.ids:
            merged.add(token, PLAIN)
    if len(merged.ids) > len(kept) and not dense and last not in source.added:
        # Loaders number added tokens from the count of the others on.
        what = "has ids that mean nothing below its largest one, so that no token can be added"
        findings.problem(str(source.file and source.file.path), what, "choose a tokenizer whose ids have no holes")
    _report(merged, spec.source == "union", findings)
    return merged


def _read_all(models: Sequence[OpenModel], findings: Findings) -> dict[int, ModelVocabulary] | None:
    """Read the vocabulary of every model: only once where files are equal."""
    first, *others = models
    own = vocabularies(first.checkpoint.folder)
    if not own:
        findings.note(f"{first} has no tokenizer, so rows of embeddings and heads are merged by their index")
        return None
    pairs: dict[int, tuple[Vocabulary, Vocabulary] | None] = {}
    for model in others:
        theirs = vocabularies(model.checkpoint.folder)
        pairs[model.index] = next(((one, other) for one in own for other in theirs if one.kind == other.kind), None)
        if theirs and pairs[model.index] is None:
            what = f"has {os.path.basename(theirs[0].path)}, and {first} has {os.path.basename(own[0].path)}: their "
            what += "tokens cannot be compared"
            remedy = "save both tokenizers with transformers (save_pretrained writes tokenizer.json)"
            findings.problem(model.checkpoint.folder, what, remedy)
            return None
    try:
        # One kind for all, so that the tokens of all are spelled alike.
        kinds = {pair[0].kind for pair in pairs.values() if pair} or {own[0].kind}
        if len(kinds) > 1:
            what = f"the tokenizers are {' and '.join(sorted(kinds))} files, which cannot be compared"
            findings.problem(first.checkpoint.folder, what, "save all tokenizers with transformers (save_pretrained)")
            return None
        base = read_vocabulary(first, next(file for file in own if file.kind in kinds))
        read = {first.index: base}
        for model in others:
            pair = pairs[model.index]
            if pair is None:
                findings.note(f"{model} has no tokenizer; its token ids are taken to mean what they mean in {first}")
            if pair is None or same_files(*pair):
                size = size_of(model, base.ids)
                read[model.index] = replace(base, model=model, file=pair and pair[1], size=size)
            else:
                read[model.index] = read_vocabulary(model, pair[1])
    except CheckpointError as error:
        findings.problem(first.checkpoint.folder, str(error))
        return None
    return read


def _unite(merged: MergedVocabulary, models: Sequence[ModelVocabulary]) -> None:
    added: dict[str, Mapping[str, Any]] = {}
    plain: dict[str, None] = {}
    known = [(model, model.known) for model in models]
    for model, tokens in known:
        for token in model.added:
            if token in tokens:
                added.setdefault(token, model.added[token])
    for _, tokens in known:
        plain |= dict.fromkeys(token for token in tokens if token not in merged.ids and token not in added)
    for token in plain:
        merged.add(token, PLAIN)
    for token, behaviour in added.items():
        if token not in merged.source.added or token in merged.removed:
            merged.add(token, behaviour)


def _report(merged: MergedVocabulary, union: bool, findings: Findings) -> None:
    source = merged.source.model
    fresh = [token for token in merged.new if token not in merged.source.ids]
    if fresh:
        findings.note(f"{len(fresh)} tokens are added to the tokenizer of {source}: {listed(list(map(repr, fresh)))}")
    if merged.removed:
        some = listed(sorted(map(repr, merged.removed)))
        findings.note(f"{len(merged.removed)} tokens of {source} have no row in its embedding and are removed: {some}")
    if union:
        return
    for model in merged.models.values():
        lost = [token for token in model.known if token not in merged.ids]
        if lost:
            some = listed(list(map(repr, lost)))
            findings.note(f"{len(lost)} tokens of {model.model} are not in the vocabulary of {source}: {some}")
