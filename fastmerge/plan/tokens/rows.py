"""Rows of embeddings and heads by token: which row of which model stands for each token of the output."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...dtypes import promoted
from ...recipe.types import ModelRef, TokenSpec
from ..findings import Findings
from ..models import MERGED, OpenModel, has_token_rows
from ..rows import Row
from ..types import Gathered, InputTensor, Run
from .merging import MergedVocabulary

Terms = tuple[tuple[int, int], ...]
"""What a row is the mean of: models by index, and their rows."""


@dataclass(frozen=True)
class _Key:
    """What decides the rows of the models that take part in a tensor, by index."""

    models: tuple[int, ...]
    base: int | None
    rows: tuple[int, ...]


def rows_by_token(
    rows: Sequence[Row],
    vocabulary: MergedVocabulary,
    models: Mapping[ModelRef, OpenModel],
    base: OpenModel | None,
    findings: Findings,
) -> list[Row]:
    """Return the rows with every tensor of the vocabulary in the order of the output's tokens.

    A token that a model lacks gets the row of the one model that has it, else the base's, else the mean of the rows of
    those that have it; a rule of the recipe comes first. A token that no model has gets zeros. Where a model's rows are
    those of the output already, or begin with them, its tensor is taken as it is.
    """
    aligner = _Aligner(vocabulary, models, base, findings)
    return [aligner.aligned(row) if has_token_rows(row.name) else row for row in rows]


class _Aligner:
    def __init__(
        self,
        vocabulary: MergedVocabulary,
        models: Mapping[ModelRef, OpenModel],
        base: OpenModel | None,
        findings: Findings,
    ):
        self._vocabulary, self._models, self._base, self._findings = vocabulary, models, base, findings
        self._by_index = {model.index: model for model in models.values()}
        self._maps: dict[_Key, dict[int, tuple[Run, ...]]] = {}

    def aligned(self, row: Row) -> Row:
        models, tensors = row.members.models.every, row.inputs.every
        widths = {tensor.shape[1:] for tensor in tensors}
        if len(widths) > 1 or not tensors[0].shape or any(tensor.dtype not in MERGED for tensor in tensors):
            return row  # which the checks of shapes and dtypes report
        present = {model.index: tensor for model, tensor in zip(models, tensors, strict=True)}
        base = next((m.index for m in (row.members.models.base, self._base) if m and m.index in present), None)
        key = _Key(tuple(present), base, tuple(tensor.shape[0] for tensor in present.values()))
        if key not in self._maps:
            self._maps[key] = self._map(key)
        runs = self._maps[key]
        # A rule may take a row of a model that has no part in this tensor.
        for index in {index for own in runs.values() for run in own for index, _ in run.terms} - present.keys():
            other = self._by_index[index].tensors.get(row.name) or self._by_index[index].embedding
            if other is None or other.shape[1:] not in widths:
                what = f"has no {row.name} of that width, from which the recipe takes a token"
                self._findings.problem(str(self._by_index[index]), what, "name a model of the same architecture")
                return row
            present[index] = other
        gathered = [
            self._gathered(row.name, model, tensor, runs[model.index], present)
            for model, tensor in zip(models, tensors, strict=True)
        ]
        return replace(row, inputs=row.inputs.like(gathered))

    def _gathered(
        self,
        name: str,
        model: OpenModel,
        tensor: InputTensor,
        runs: tuple[Run, ...],
        present: Mapping[int, InputTensor],
    ) -> InputTensor:
        vocabulary = self._vocabulary
        size, rows = vocabulary.size, vocabulary.rows
        if runs == (Run(0, size, ((model.index, 0),)),) and size == rows:
            if tensor.shape[0] == size:
                return tensor
            if tensor.plain:
                nbytes = tensor.nbytes // tensor.shape[0] * size
                return replace(tensor, shape=(size, *tensor.shape[1:]), nbytes=nbytes)
        used = list(dict.fromkeys([model.index, *(index for run in runs for index, _ in run.terms)]))
        places = {index: place for place, index in enumerate(used)}
        sources = tuple(tensor if index == model.index else present[index] for index in used)
        moved = tuple(replace(run, terms=tuple((places[index], first) for index, first in run.terms)) for run in runs)
        dtype = promoted(source.value_dtype for source in sources)
        stored = promoted(source.stored_dtype for source in sources)
        shape = (rows, *tensor.shape[1:])
        return InputTensor(
            tensor.model,
            tensor.name,
            f"{name} of {model}, by token",
            0,
            math.prod(shape) * dtype.itemsize,
            dtype,
            shape,
            gathered=Gathered(sources, moved, size, stored),
        )

    def _map(self, key: _Key) -> dict[int, tuple[Run, ...]]:
        """Return the runs of every model; their terms name models by index."""
        size, ids = self._vocabulary.size, self._vocabulary.ids
        own = {index: self._own_rows(index, count) for index, count in zip(key.models, key.rows, strict=True)}
        lacking = np.zeros(size, bool)
        for rows in own.values():
            lacking |= rows < 0
        forced = np.zeros(size, bool)
        for token, rule in self._vocabulary.rules.items():
            forced[ids[token]] = rule.force
        tokens = {i: token for token, i in ids.items()}
        instead = {i: self._terms(tokens.get(i), i, key, own) for i in map(int, np.flatnonzero(lacking | forced))}
        return {index: tuple(_runs(index, np.where(forced, -1, rows), instead)) for index, rows in own.items()}

    def _own_rows(self, index: int, rows: int) -> np.ndarray:
        """Return a model's row for every token of the output; -1 where it has none."""
        vocabulary = self._vocabulary
        known, limit = vocabulary.models[index].ids, min(vocabulary.models[index].size, rows)
        found = np.full(vocabulary.size, -1, np.int64)
        for token, i in vocabulary.ids.items():
            row = known.get(token, limit)
            if row < limit:
                found[i] = row
        return found

    def _terms(self, token: str | None, i: int, key: _Key, own: Mapping[int, np.ndarray]) -> Terms:
        rule = self._vocabulary.rules.get(token) if token is not None else None
        if rule is not None and rule.source is not None:
            return self._ruled(rule)
        having = [index for index in key.models if own[index][i] >= 0]
        if key.base in having:
            having = [key.base]
        return tuple((index, int(own[index][i])) for index in having)

    def _ruled(self, rule: TokenSpec) -> Terms:
        """Return the row that a rule of the recipe names."""
        if not isinstance(rule.source, ModelRef):
            return ()
        where = f"{self._vocabulary.where}: tokens: {rule.token}"
        model = self._models.get(rule.source)
        if model is None:
            self._findings.problem(where, f"{rule.source} is no model of the recipe", "name one")
            return ()
        vocabulary = self._vocabulary.models[model.index]
        wanted = rule.token if rule.token_of is None else rule.token_of
        row = vocabulary.ids.get(wanted, -1) if isinstance(wanted, str) else wanted
        limit = vocabulary.size
        if isinstance(wanted, int) and model.embedding is not None:
            limit = model.embedding.shape[0]
        if not 0 <= row < limit:
            what = f"{model} has no row for {wanted!r}" if isinstance(wanted, str) else f"{model} has {limit} rows"
            self._findings.problem(where, what, "name a token that the model has, or another source")
            return ()
        return ((model.index, row),)


def _runs(index: int, rows: np.ndarray, instead: Mapping[int, Terms]) -> Iterator[Run]:
    """Yield the runs of a model: its own rows, and what stands in for those that are negative."""
    if not len(rows):
        return
    breaks = np.flatnonzero((np.diff(rows) != 1) | (rows[:-1] < 0) | (rows[1:] < 0)) + 1
    last: Run | None = None
    for start, stop in zip((0, *breaks.tolist()), (*breaks.tolist(), len(rows)), strict=True):
        terms = ((index, int(rows[start])),) if rows[start] >= 0 else instead[start]
        if last is not None and _goes_on(last, terms):
            last = replace(last, count=last.count + stop - start)
            continue
        if last is not None:
            yield last
        last = Run(start, stop - start, terms)
    if last is not None:
        yield last


def _goes_on(run: Run, terms: Terms) -> bool:
    """True where ``terms`` are the rows behind those of ``run``."""
    return terms == tuple((index, first + run.count) for index, first in run.terms)
