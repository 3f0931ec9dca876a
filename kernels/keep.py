r"""Keep rules: which elements of a delta take part in a sparse merge.

Elements of a delta are ranked by magnitude, largest first, and among equal magnitudes by their
global index, lowest first. A ``Boundary`` cuts that order after exactly k elements: everything
above ``threshold`` and, of the elements equal to it, those whose index is below ``break_index``.
A ``>=`` rule, as some tools use, is the boundary whose ``break_index`` is ``ALL_EQUAL``.

Magnitudes are compared as the float32 bits without the sign. All NaNs have one magnitude, just above
infinity (their payloads differ between processors), so a NaN is the last to be trimmed away.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .philox import keep_mask

__all__ = ["ALL_EQUAL", "EVERYTHING", "NOTHING", "Boundary", "Keep", "keep_all", "keep_band", "keep_random", "keep_top"]

ALL_EQUAL = 2**63 - 1
NAN_MAGNITUDE = 0x7F800001

# Numbers of csrc/fastmerge_math.h.
RULE_ALL, RULE_BAND, RULE_RANDOM = 0, 1, 2


class Boundary(NamedTuple):
    """A cut of the magnitude order: keeps bits > threshold, and bits == threshold where index < break_index."""

    threshold: int
    break_index: int


EVERYTHING = Boundary(0, ALL_EQUAL)
NOTHING = Boundary(0x80000000, 0)


class Keep(NamedTuple):
    """A keep rule as five integers, the form in which every backend takes it.

    RULE_ALL:    no argument.
    RULE_BAND:   (threshold, break) of the boundary that holds an element, then of the one that must not.
    RULE_RANDOM: Philox key (64 bit, as signed), model index, drop threshold.
    """

    rule: int
    a: int = 0
    b: int = 0
    c: int = 0
    d: int = 0


def keep_all() -> Keep:
    """Keep every element."""
    return Keep(RULE_ALL)


def keep_top(boundary: Boundary) -> Keep:
    """Keep the largest elements, down to ``boundary``."""
    return keep_band(boundary, NOTHING)


def keep_band(inside: Boundary, outside: Boundary) -> Keep:
    """Keep the elements down to ``inside`` but not those down to ``outside`` (the largest outliers)."""
    return Keep(RULE_BAND, *inside, *outside)


def keep_random(key: int, model: int, drop: int) -> Keep:
    """Drop each element with probability ``drop / 2**32``, by the counter-based numbers of ``philox``."""
    return Keep(RULE_RANDOM, key - 2**64 if key >= 2**63 else key, model, drop)


def magnitude_bits(delta: Tensor) -> Tensor:
    """Return the float32 bits of ``|delta|`` as int32 (ordered like the magnitudes), NAN_MAGNITUDE for a NaN."""
    return (delta.view(torch.int32) & 0x7FFFFFFF).clamp(max=NAN_MAGNITUDE)


def kept(delta: Tensor, keep: Keep, offset: int) -> Tensor:
    """Return the bool mask of the kept elements of a flat float32 ``delta`` that starts at global index ``offset``."""
    if keep.rule == RULE_ALL:
        return torch.ones_like(delta, dtype=torch.bool)
    if keep.rule == RULE_RANDOM:
        return keep_mask(keep.a % 2**64, keep.b, keep.c, offset, delta.numel(), delta.device)
    bits = magnitude_bits(delta).to(torch.int64)
    index = torch.arange(offset, offset + delta.numel(), dtype=torch.int64, device=delta.device)
    inside = (bits > keep.a) | ((bits == keep.a) & (index < keep.b))
    outside = (bits > keep.c) | ((bits == keep.c) & (index < keep.d))
    return inside & ~outside
