"""Attention projections taken apart: queries, keys and values of a fused weight, and heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..steps.method import Group
from ._spectral import module_of

SPLITTINGS = ("none", "qkv", "heads")

QUERIES = {"q_proj", "wq", "query", "q"}
KEYS_VALUES = {"k_proj", "v_proj", "wk", "wv", "key", "value", "k", "v"}
OUTPUTS = {"o_proj", "out_proj", "wo", "o", "dense", "proj"}
# Queries, then keys, then values, in blocks of rows.
FUSED = {"qkv_proj", "in_proj_weight", "qkv", "Wqkv", "W_pack"}
# Fused in an order that differs between the models that use the name: interleaved by head, or transposed.
UNCLEAR = {"c_attn", "query_key_value", "wqkv"}


@dataclass(frozen=True)
class Part:
    """Rows (axis 0) or columns (axis 1) of a matrix, to be cut into ``count`` pieces of one size."""

    axis: int
    start: int
    length: int
    count: int


def parts_of(group: Group, splitting: str, heads: int, kv_heads: int) -> list[Part]:
    """Return the parts of a tensor's matrices, each of which is boosted for itself.

    Args:
        splitting: ``none``; ``qkv``: a fused weight in three; ``heads``: that, then queries, keys and values by rows
                   and the output projection by columns.
        heads, kv_heads: replace those of the model's config; 0 does not.
    Raises:
        ValueError: the heads are not known or do not divide the tensor, or the order of a fused weight is not known.
    """
    whole = [Part(0, 0, group.shape[-2], 1)]
    module = module_of(group.name)
    parents = group.name.rpartition(module)[0].lower()
    if splitting == "none" or not ("attn" in parents or "attention" in parents):
        return whole
    if module in UNCLEAR or (splitting == "heads" and module not in QUERIES | KEYS_VALUES | OUTPUTS | FUSED):
        raise ValueError(
            f"{group.name}: splitting: {splitting} is not offered for {module}, whose order of heads differs between "
            "models; set splitting: none for it"
        )
    layout = group.layout
    heads = heads or (layout.heads if layout else 0)
    kv_heads = kv_heads or (layout.kv_heads if layout else 0) or heads
    if module in FUSED:
        return list(_fused(group, splitting, heads, kv_heads))
    if splitting == "qkv":
        return whole
    axis, count = (1, heads) if module in OUTPUTS else (0, heads if module in QUERIES else kv_heads)
    return [Part(axis, 0, group.shape[axis - 2], _divided(group, group.shape[axis - 2], count))]


def _fused(group: Group, splitting: str, heads: int, kv_heads: int) -> Iterator[Part]:
    rows, columns = group.shape[-2:]
    if not heads and rows == 3 * columns and splitting == "qkv":
        heads = kv_heads = 1
    size = rows // _divided(group, rows, heads and heads + 2 * kv_heads)
    start = 0
    for count in (heads, kv_heads, kv_heads):
        yield Part(0, start, count * size, count if splitting == "heads" else 1)
        start += count * size


def _divided(group: Group, length: int, count: int) -> int:
    if not count:
        raise ValueError(
            f"{group.name}: splitting needs the number of attention heads, and no config.json says it; "
            "give heads and kv_heads of the boost"
        )
    if length % count:
        raise ValueError(f"{group.name}: {length} rows or columns are not divided by {count} heads")
    return count
