"""What each kind of adapter does to rows of a tensor, in float32.

Products are summed in one order (``kernels.low_rank_update``), other operations are rounded one by one, so that a
result does not depend on how a tensor is cut into rows, on threads, or on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from ...plan.types import Adapter, InputTensor
from .elements import Hadamard, Kronecker, Rows, Scaling, Vector
from .low_rank import Dora, Experts, Scaled, Term
from .memory import made_shapes
from .rotations import Rotation

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Term", "add_terms", "make_term", "term_of"]

_KINDS: dict[str, type[Term]] = {
    "lora": Term, "dora": Dora, "adalora": Scaled, "vera": Scaled, "experts": Experts, "vector": Vector, "ia3": Scaling,
    "rows": Rows, "loha": Hadamard, "lokr": Kronecker, "oft": Rotation, "boft": Rotation,
}  # fmt: skip


def make_term(adapter: Adapter, parts: Sequence[Tensor], made: Sequence[Tensor]) -> Term:
    """Return a term; its parts may be filled later, before ``Term.make``."""
    return _KINDS[adapter.kind](adapter, parts, made)


def term_of(adapter: Adapter, load: Callable[[InputTensor], Tensor]) -> Term:
    """Return a term whose parts ``load`` returns as they are stored."""
    import torch

    parts = [load(part).float() for part in adapter.parts]
    term = make_term(adapter, parts, [torch.empty(shape) for shape in made_shapes(adapter)])
    term.make()
    return term


def add_terms(out: Tensor, weight: Tensor, terms: Iterable[Term], first: int) -> None:
    """Write ``weight``, the rows of a tensor from ``first`` on, into ``out`` (float32) as every term changes them."""
    for term in terms:
        term.add(out, weight, first)
        weight = out
