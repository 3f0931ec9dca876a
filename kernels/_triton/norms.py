"""Triton kernel of ``norm_partials``."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ..keep import Keep
from ._element import entry, load_delta
from ._grid import GRID, LANES, NUM_WARPS, chunk_spans, rows_of, store_tree_sum
from ._keep import keep_table, kept, rule_of
from ._launch import launch, pointer_table, to_device


@triton.jit(do_not_specialize=["models", "columns", "offset", "first", "numel"])
def _norms_kernel(
    partials_ptr, table, base_ptr, rules, pairs, models, columns, offset, first, numel,
    RULE: tl.constexpr, POWER: tl.constexpr, DTYPE: tl.constexpr, ALIGN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    # Models of one chunk run side by side, so that the base comes from memory once and then from the cache.
    program = tl.program_id(0)
    chunk = (first + program // models).to(tl.int64)
    k = program % models
    source = entry(table, k, DTYPE, ALIGN)
    total = tl.zeros([LANES], tl.float64)
    inside = tl.zeros([LANES], tl.float64)
    for row in range(rows_of(chunk, numel, MASKED)):
        start = chunk * GRID + row * LANES
        offsets = start + tl.arange(0, LANES)
        mask = offsets < numel if MASKED else None
        delta = load_delta(source, base_ptr, offsets, mask, DTYPE, ALIGN)
        # Multiplied rather than selected: a dropped NaN stays visible.
        factor = tl.where(kept(delta, rules, k, offset + start, RULE, LANES, True), 1.0, 0.0).to(tl.float64)
        wide = delta.to(tl.float64)
        power = tl.abs(wide) if POWER == 1 else wide * wide
        total = total + power
        inside = tl.fma(power, factor, inside)
    pair = partials_ptr + chunk * columns + 2 * tl.load(pairs + k)
    store_tree_sum(pair, total)
    store_tree_sum(pair + 1, inside)


def norms(
    partials: Tensor, tensors: Sequence[Tensor], base: Tensor | None, keeps: Sequence[Keep], power: int, offset: int
) -> None:
    """See ``kernels.norm_partials``. One launch for all models that share a kind of keep rule."""
    rules = [rule_of(keep) for keep in keeps]
    numel = tensors[0].numel()
    for rule in sorted(set(rules)):
        group = [k for k, other in enumerate(rules) if other == rule]
        table, constants = pointer_table([tensors[k] for k in group])
        rows = keep_table([keeps[k] for k in group], partials)
        pairs = to_device([group], partials)
        for first, chunks, masked in chunk_spans(numel):
            launch(
                _norms_kernel, (chunks * len(group),), partials, partials, table, base, rows, pairs, len(group),
                2 * len(tensors), offset, first, numel, RULE=rule, POWER=power, MASKED=masked, num_warps=NUM_WARPS,
                **constants,
            )  # fmt: skip
