r"""Keep rules: which elements of a delta take part in a sparse merge.

Elements of a delta are ranked by magnitude, largest first, and among equal magnitudes by their
global index, lowest first. A ``Boundary`` cuts that order after exactly k elements: everything
above ``threshold`` and, of the elements equal to it, those whose index is below ``break_index``.
A ``>=`` rule, as some tools use, is the boundary whose ``break_index`` is ``ALL_EQUAL``.

A mask holds one bit per element of the whole tensor: element i is kept where bit ``i & 31`` of word ``i >> 5`` is set.
Of a part it may hold only the words of that part, from an element on that is a multiple of 32.

Magnitudes are compared as the float32 bits without the sign. All NaNs have one magnitude, just above
infinity (their payloads differ between processors), so a NaN is the last to be trimmed away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from fastmerge.dtypes import int32

from ._checks import is_dtype
from ._found import FoundBoundary
from .philox import keep_mask, keep_mask_at

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ALL_EQUAL",
    "EVERYTHING",
    "NOTHING",
    "Boundary",
    "Keep",
    "keep_all",
    "keep_band",
    "keep_masked",
    "keep_on_rows",
    "keep_random",
    "keep_top",
    "mask_words",
]

ALL_EQUAL = 2**63 - 1
NAN_MAGNITUDE = 0x7F800001

# Numbers of csrc/fastmerge_math.h.
RULE_ALL, RULE_BAND, RULE_RANDOM, RULE_MASK = 0, 1, 2, 3


class Boundary(NamedTuple):
    """A cut of the magnitude order: keeps bits > threshold, and bits == threshold where index < break_index."""

    threshold: int
    break_index: int


EVERYTHING = Boundary(0, ALL_EQUAL)
NOTHING = Boundary(0x80000000, 0)


class Keep(NamedTuple):
    """A keep rule: its number, four integers, and the mask of RULE_MASK.

    RULE_ALL:    no argument.
    RULE_BAND:   (threshold, break) of the boundary that holds an element, then of the one that must not.
    RULE_RANDOM: Philox key (64 bit, as signed), model index, drop threshold; of a strided part (``keep_on_rows``) also
                 the global index of its first element.
    RULE_MASK:   0, 0, 0 and the global index of the first element of ``mask`` ([words] int32, on the device of the
                 deltas).

    ``inside`` and ``outside`` stand for boundaries of RULE_BAND that only the device of the deltas knows. ``drawn``, of
    RULE_RANDOM, is a mask that norms fill in: see ``noting``; ``row`` and ``stride`` are the elements of a row, 0 where
    the part is not strided, and those from row to row.
    """

    rule: int
    a: int = 0
    b: int = 0
    c: int = 0
    d: int = 0
    mask: Tensor | None = None
    inside: FoundBoundary | None = None
    outside: FoundBoundary | None = None
    drawn: Tensor | None = None
    row: int = 0
    stride: int = 0

    @property
    def found(self) -> list[FoundBoundary]:
        """The boundaries that only the device knows."""
        return [boundary for boundary in (self.inside, self.outside) if boundary is not None]

    def noting(self, drawn: Tensor) -> Keep:
        """Return a random rule whose decisions ``norm_partials`` writes to ``drawn``, a mask of the whole tensor."""
        return self._replace(drawn=drawn)

    @property
    def random(self) -> bool:
        """True where it draws."""
        return self.rule == RULE_RANDOM

    @property
    def noted(self) -> Keep:
        """The rule for a merge after norms of all elements: it keeps the same ones and draws nothing that was noted."""
        return self if self.drawn is None else keep_masked(self.drawn)

    def integers(self) -> tuple[int, int, int, int, int]:
        """Return the rule as compiled backends take it: ``a`` is the address of the mask and ``b`` counts its words.

        Both are those of a mask that begins with the tensor.
        """
        if self.mask is None:
            return self[:5]
        return self.rule, self.mask.data_ptr() - self.d // 8, self.mask.numel() + self.d // 32, 0, 0


def keep_all() -> Keep:
    """Keep every element."""
    return Keep(RULE_ALL)


def keep_top(boundary: Boundary | FoundBoundary) -> Keep:
    """Keep the largest elements, down to ``boundary``."""
    return keep_band(boundary, NOTHING)


def keep_band(inside: Boundary | FoundBoundary, outside: Boundary | FoundBoundary) -> Keep:
    """Keep the elements down to ``inside`` but not those down to ``outside`` (the largest outliers)."""
    if isinstance(inside, Boundary) and isinstance(outside, Boundary):
        return Keep(RULE_BAND, *inside, *outside)
    numbers = [NOTHING if isinstance(boundary, FoundBoundary) else boundary for boundary in (inside, outside)]
    found = [boundary if isinstance(boundary, FoundBoundary) else None for boundary in (inside, outside)]
    return Keep(RULE_BAND, *numbers[0], *numbers[1], inside=found[0], outside=found[1])


def keep_random(key: int, model: int, drop: int) -> Keep:
    """Drop each element with probability ``drop / 2**32``, by the counter-based numbers of ``philox``."""
    return Keep(RULE_RANDOM, key - 2**64 if key >= 2**63 else key, model, drop)


def keep_on_rows(keep: Keep, start: int, row: int, stride: int) -> Keep:
    """Return a random rule of the elements of a strided part: rows of a tensor, or pieces of its rows.

    Element i of the part has the global index ``start + i // row * stride + i % row``; the ``offset`` of an operation
    counts the elements of the part.
    """
    if keep.rule != RULE_RANDOM or start < 0 or row < 1 or stride < row:
        raise ValueError(
            f"rule is {keep.rule}, start is {start}, row is {row} and stride is {stride}; expected a random rule "
            "and 0 <= start, 1 <= row <= stride"
        )
    return keep._replace(d=start, row=row, stride=stride)


def keep_masked(mask: Tensor, first: int = 0) -> Keep:
    """Keep the elements whose bit is set in ``mask``, int32 words of the tensor from element ``first`` on."""
    if first < 0 or first % 32:
        raise ValueError(f"first is {first}; expected a multiple of 32")
    return Keep(RULE_MASK, d=first, mask=mask)


def mask_words(numel: int) -> int:
    """Return the words of a mask of ``numel`` elements."""
    return -(-numel // 32)


def check_keeps(keeps: Sequence[Keep], tensors: Sequence[Tensor], offset: int) -> None:
    """Refuse rules that are not one per tensor, or of several strided parts, or a mask that ends before the elements
    from ``offset`` on do."""
    if len(keeps) != len(tensors):
        raise ValueError(f"keeps has {len(keeps)} rules; expected {len(tensors)}, one per tensor")
    strided = False
    for k, (keep, tensor) in enumerate(zip(keeps, tensors, strict=True)):
        strided = strided or keep.row > 0
        if keep.rule != RULE_MASK and keep.drawn is keep.inside is keep.outside is None:
            continue
        for boundary in keep.found:
            if boundary.rows.device != tensor.device:
                raise ValueError(
                    f"keeps[{k}] has a boundary on {boundary.rows.device}, tensors[{k}] is on {tensor.device}"
                )
        if keep.rule == RULE_MASK:
            if offset < keep.d and tensor.numel():
                raise ValueError(f"keeps[{k}].mask begins with element {keep.d}; the first one here is {offset}")
            _check_mask(f"keeps[{k}].mask", keep.mask, f"tensors[{k}]", tensor, offset - keep.d)
        if keep.drawn is not None:
            _check_mask(f"keeps[{k}].drawn", keep.drawn, f"tensors[{k}]", tensor, offset)
    if strided:
        parts = {(keep.d, keep.row, keep.stride) for keep in keeps if keep.rule == RULE_RANDOM}
        if len(parts) > 1:
            raise ValueError(f"keeps has random rules of parts {sorted(parts)} (start, row, stride); expected one part")


def _check_mask(name: str, mask: Tensor | None, of: str, tensor: Tensor, offset: int) -> None:
    words = mask_words(offset + tensor.numel())
    if mask is None or not is_dtype(mask.dtype, int32) or mask.dim() != 1 or not mask.is_contiguous():
        found = "None" if mask is None else f"{mask.dtype} {tuple(mask.shape)}, strides {tuple(mask.stride())}"
        raise ValueError(f"{name} is {found}; expected contiguous int32 words in one dimension")
    if mask.numel() < words:
        raise ValueError(f"{name} has {mask.numel()} words; the last element here needs {words}")
    if mask.device != tensor.device:
        raise ValueError(f"{name} is on {mask.device}, {of} is on {tensor.device}")


def magnitude_bits(delta: Tensor) -> Tensor:
    """Return the float32 bits of ``|delta|`` as int32 (ordered like the magnitudes), NAN_MAGNITUDE for a NaN."""
    import torch

    return (delta.view(torch.int32) & 0x7FFFFFFF).clamp(max=NAN_MAGNITUDE)


def kept(delta: Tensor, keep: Keep, offset: int) -> Tensor:
    """Return the bool mask of the kept elements of a flat float32 ``delta`` that starts at global index ``offset``."""
    import torch

    if keep.rule == RULE_ALL:
        return torch.ones_like(delta, dtype=torch.bool)
    if keep.rule == RULE_RANDOM and keep.row:
        place = torch.arange(offset, offset + delta.numel(), dtype=torch.int64, device=delta.device)
        index = keep.d + place // keep.row * keep.stride + place % keep.row
        return keep_mask_at(keep.a % 2**64, keep.b, keep.c, index)
    if keep.rule == RULE_RANDOM:
        return keep_mask(keep.a % 2**64, keep.b, keep.c, offset, delta.numel(), delta.device)
    if keep.rule == RULE_MASK:
        assert keep.mask is not None, "check_keeps refuses it"
        return _unpacked(keep.mask, offset - keep.d, delta.numel())
    bits = magnitude_bits(delta).to(torch.int64)
    index = torch.arange(offset, offset + delta.numel(), dtype=torch.int64, device=delta.device)
    inside = (bits > keep.a) | ((bits == keep.a) & (index < keep.b))
    outside = (bits > keep.c) | ((bits == keep.c) & (index < keep.d))
    return inside & ~outside


def packed(bits: Tensor) -> Tensor:
    """Return a bool tensor as the int32 words of a mask; the bits beyond the last element are 0."""
    import torch

    padded = torch.zeros(32 * mask_words(bits.numel()), dtype=torch.int64, device=bits.device)
    padded[: bits.numel()] = bits.flatten()
    words = (padded.view(-1, 32) << torch.arange(32, device=bits.device)).sum(1)
    return torch.where(words < 2**31, words, words - 2**32).int()


def _unpacked(mask: Tensor, offset: int, count: int) -> Tensor:
    """Return the bits of the elements offset .. offset + count - 1 as a bool tensor."""
    import torch

    words = mask[offset >> 5 : (offset + count + 31) >> 5]
    bits = (words[:, None] >> torch.arange(32, dtype=torch.int32, device=mask.device)) & 1
    return bits.flatten()[offset & 31 :][:count].bool()
