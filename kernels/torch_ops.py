"""Importing this module registers the operations as ``torch.ops.fastmerge.*``.

They serve dry runs on fake tensors, profiles and ``torch.compile``. Same contracts as the functions of
this package, which are cheaper to call. Keep rules and ranks come flattened, since a schema has no
nested integers: five integers per model and their masks beside them, and as many ranks per tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ._checks import check_float, check_group
from .gram import gram_partials
from .histogram import equal_counts, magnitude_histogram
from .keep import Keep
from .low_rank import low_rank_update
from .norms import norm_partials
from .rank_mask import Ranked, rank_mask
from .select import select_boundaries
from .sparse_merge import sparse_merge
from .weighted_sum import weighted_sum

__all__: list[str] = []

_library = torch.library.Library("fastmerge", "DEF")


def _define(schema: str, fake: Callable) -> Callable[[Callable], Callable]:
    """Register an implementation for every device under ``schema``, and what a fake tensor sees of it (decorator)."""

    def add(run: Callable) -> Callable:
        name = _library.define(schema)
        _library.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastmerge::{name}", fake, lib=_library)
        return run

    return add


def _keeps(flat: Sequence[int], masks: Sequence[Tensor | None]) -> list[Keep]:
    columns = (flat[i::5] for i in range(5))
    return [Keep(rule, a, b, c, d, mask) for rule, a, b, c, d, mask in zip(*columns, masks, strict=True)]


def _check_out(out: Tensor, tensors: Sequence[Tensor], *_) -> None:
    check_group(tensors, None, out)


def _check_merge(out: Tensor, base: Tensor, tensors: Sequence[Tensor], *_) -> None:
    check_group(tensors, base, out)


def _check_table(table: Tensor, tensors: Sequence[Tensor], base: Tensor | None, *_) -> None:
    check_group(tensors, base)


def _check_masks(masks: Sequence[Tensor], tensors: Sequence[Tensor], base: Tensor | None, *_) -> None:
    check_group(tensors, base)


def _check_low_rank(out: Tensor, weight: Tensor, *_) -> None:
    check_float("out", out)
    check_float("weight", weight)


def _empty_boundaries(tensors: Sequence[Tensor], base: Tensor | None, ranks: Sequence[int]) -> Tensor:
    check_group(tensors, base)
    return torch.empty(len(tensors), len(ranks) // len(tensors), 2, dtype=torch.int64)


@_define("weighted_sum(Tensor(a!) out, Tensor[] tensors, float[] weights) -> ()", _check_out)
def _weighted_sum(out: Tensor, tensors: Sequence[Tensor], weights: Sequence[float]) -> None:
    weighted_sum(out, tensors, weights)


@_define(
    "sparse_merge(Tensor(a!) out, Tensor base, Tensor[] tensors, float[] factors, int[] keeps, Tensor?[] masks, "
    "float[] weights, str vote, str divide, float scale, int offset) -> ()",
    _check_merge,
)
def _sparse_merge(out, base, tensors, factors, keeps, masks, weights, vote, divide, scale, offset) -> None:
    sparse_merge(
        out, base, tensors, factors=factors, keeps=_keeps(keeps, masks), weights=weights, vote=vote,
        divide=divide, scale=scale, offset=offset,
    )  # fmt: skip


@_define("gram_partials(Tensor(a!) partials, Tensor[] tensors, Tensor? base) -> ()", _check_table)
def _gram_partials(partials: Tensor, tensors: Sequence[Tensor], base: Tensor | None) -> None:
    gram_partials(partials, tensors, base)


@_define(
    "norm_partials(Tensor(a!) partials, Tensor[] tensors, Tensor? base, int[] keeps, Tensor?[] masks, int power, "
    "int offset) -> ()",
    _check_table,
)
def _norm_partials(partials, tensors, base, keeps, masks, power, offset) -> None:
    norm_partials(partials, tensors, base, _keeps(keeps, masks), power=power, offset=offset)


@_define("select_boundaries(Tensor[] tensors, Tensor? base, int[] ranks) -> Tensor", _empty_boundaries)
def _select_boundaries(tensors: Sequence[Tensor], base: Tensor | None, ranks: Sequence[int]) -> Tensor:
    each = len(ranks) // len(tensors)
    found = select_boundaries(tensors, base, [ranks[i * each : (i + 1) * each] for i in range(len(tensors))])
    return torch.tensor(found, dtype=torch.int64).view(len(tensors), each, 2)


@_define(
    "magnitude_histogram(Tensor(a!) counts, Tensor[] tensors, Tensor? base, int level, int[] prefixes) -> ()",
    _check_table,
)
def _magnitude_histogram(counts, tensors, base, level, prefixes) -> None:
    magnitude_histogram(counts, tensors, base, level, prefixes)


@_define("equal_counts(Tensor(a!) counts, Tensor[] tensors, Tensor? base, int[] thresholds) -> ()", _check_table)
def _equal_counts(counts, tensors, base, thresholds) -> None:
    equal_counts(counts, tensors, base, thresholds)


@_define(
    "rank_mask(Tensor(a!)[] masks, Tensor[] tensors, Tensor? base, int[] models, float[] densities, float[] epsilons, "
    "int[] rows, int key) -> ()",
    _check_masks,
)
def _rank_mask(masks, tensors, base, models, densities, epsilons, rows, key) -> None:
    ranked = [Ranked(*values) for values in zip(models, densities, epsilons, strict=True)]
    # A schema has signed integers of 64 bits.
    rank_mask(masks, tensors, base, ranked, rows=tuple(rows), key=key % 2**64)


@_define("low_rank_update(Tensor(a!) out, Tensor weight, Tensor up, Tensor down, float scale) -> ()", _check_low_rank)
def _low_rank_update(out: Tensor, weight: Tensor, up: Tensor, down: Tensor, scale: float) -> None:
    low_rank_update(out, weight, up, down, scale)
