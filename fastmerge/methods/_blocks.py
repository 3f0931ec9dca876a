"""Blocks: what a recipe may add to any method that adds a merged delta to the base.

``lines:`` scales the merged delta by the depth of its layer, ``svc:`` shrinks singular values that models share,
``boost:`` raises small ones. A method with blocks is a method again, called for example ``ties+lines+boost``; its
parameters are its own and those of the blocks, ``boost.beta``.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from ..steps.apply import Apply, DeltaMerge
from ..steps.method import Group, Method, Parameter, Solve
from ._boost import BOOST_PARAMETERS, Boost
from ._lines import LINES_PARAMETERS, scaled_by_depth
from ._spectral import decomposed
from ._svc import SVC_PARAMETERS, Svc


class Block(ABC):
    """A change of merged deltas.

    Attributes:
        name:       its key in recipes.
        parameters: what it may set, by their full names.
        paper:      citation.
    """

    name: ClassVar[str]
    parameters: ClassVar[tuple[Parameter, ...]]
    paper: ClassVar[str]

    @abstractmethod
    def extend(self, group: Group, step: DeltaMerge) -> DeltaMerge | Solve:
        """Return ``step`` with its merged delta changed, or what surveys first; ValueError where that cannot be."""

    def scratch_bytes(self, group: Group, inner: int | None) -> int | None:
        """As ``Method.scratch_bytes``, where that of the step before is ``inner``."""
        return inner

    def censuses(self, group: Group) -> int:
        """As ``Method.censuses``, of the block itself."""
        return 0

    def takes_strips(self, group: Group) -> bool:
        """As ``Method.takes_strips``, of the block itself."""
        return False

    def together(self, group: Group) -> bool:
        """As ``Method.together``, of the block itself."""
        return False

    def stacks(self, group: Group) -> bool:
        """As ``Method.stacks``, of the block itself."""
        return False


def _prefixed(name: str, parameters: Sequence[Parameter]) -> tuple[Parameter, ...]:
    return tuple(replace(parameter, name=f"{name}.{parameter.name}") for parameter in parameters)


class LinesBlock(Block):
    """LiNeS: the merged delta of layer l of L is multiplied by ``alpha + beta * l / (L - 1)``, l from 0.

    Tensors outside the layers, and those of a model with a single layer, are multiplied by ``alpha``. With ``auto`` it
    is multiplied by the paper's ``|sum_k (theta_k - base)|_1 / |merged delta|_1 / N`` over all tensors of N models: 1/N
    for a sum, more for a method that drops much. That takes one reading of the model more, with the surveys of the
    method; a tensor that is merged by itself is a model. The paper tunes ``beta``.
    """

    name = "lines"
    paper = "Wang et al. 2025, arXiv 2410.17146"
    parameters = _prefixed("lines", LINES_PARAMETERS)

    def extend(self, group: Group, step: DeltaMerge) -> Solve:
        return scaled_by_depth(group, step)

    def scratch_bytes(self, group: Group, inner: int | None) -> int | None:
        """A delta that is made at once to take its norm."""
        return inner if inner is None or not group["lines.auto"] else inner + 4 * group.numel

    def censuses(self, group: Group) -> int:
        return int(group["lines.auto"])

    def takes_strips(self, group: Group) -> bool:
        return True

    def together(self, group: Group) -> bool:
        return True

    def stacks(self, group: Group) -> bool:
        return True


class SvcBlock(Block):
    """Singular value calibration: singular values s_r of the merged delta M of a matrix become gamma_r s_r.

        gamma_r = K / sum_i max(alpha, <a, a_i> / |a_i|^2),   a = u_r^T M,  a_i = u_r^T (theta_i - base)

    u_r are M's left singular vectors, and i runs over the K models. Where several models push in one direction, M has
    more of it than any of them, and gamma_r < 1; where they cancel, gamma_r > 1, up to 1 / alpha. ``alpha`` is 1/K by
    default, so that no value grows by more than a factor K. M is the delta of the method, all its scales included. What
    is no matrix of a layer the method merges alone. Equal singular values have no singular vectors of their own: there
    the result depends on the decomposition.
    """

    name = "svc"
    paper = "Li et al. 2026, arXiv 2602.05536"
    parameters = _prefixed("svc", SVC_PARAMETERS)

    def extend(self, group: Group, step: DeltaMerge) -> DeltaMerge:
        return Svc.of(group).extend(group, step)

    def scratch_bytes(self, group: Group, inner: int | None) -> int | None:
        return Svc.of(group).scratch_bytes(group, inner)


class BoostBlock(Block):
    """Subspace Boosting: small singular values s of the merged delta of a matrix, s falling, are raised.

        s'_i = max(s_i, s_j),   j = first index with  s_0 + ... + s_j >= beta * sum s

    ``beta`` counts from the top: 1 leaves the delta as it is, and at 0 every singular value becomes the largest. The
    delta is that of the method, all its scales included. What is no matrix of a layer the method merges alone.
    Reproducibility, noise and null directions as in ``task_arithmetic_sb``.
    """

    name = "boost"
    paper = "Skorobogat et al. 2025, arXiv 2506.16506"
    parameters = _prefixed(
        "boost", (*BOOST_PARAMETERS, Parameter("lambda", float, 1.0, doc="scale of the boosted delta"))
    )

    def __init__(self, prefix: str = "boost."):
        self._prefix = prefix

    def extend(self, group: Group, step: DeltaMerge) -> DeltaMerge:
        return Boost.of(group, self._prefix).extend(group, step)

    def scratch_bytes(self, group: Group, inner: int | None) -> int | None:
        return Boost.of(group, self._prefix).scratch_bytes(group, inner)

    def together(self, group: Group) -> bool:
        return Boost.of(group, self._prefix).together(group)

    def stacks(self, group: Group) -> bool:
        return Boost.of(group, self._prefix).stacks(group)


BLOCKS: dict[str, Block] = {block.name: block for block in (LinesBlock(), SvcBlock(), BoostBlock())}
"""Every block by name, in the order in which they are applied."""


class Extended(Method):
    """A method with blocks: ``inner`` makes a merged delta, and every block changes it in turn."""

    inner: ClassVar[Method]
    blocks: ClassVar[tuple[Block, ...]]
    base = "required"

    def merge(self, group: Group) -> Solve:
        step = self.inner.merge(group)
        if not isinstance(step, Apply):
            step = yield from step
        for block in self.blocks:
            assert isinstance(step, DeltaMerge), f"{self.inner.name} adds no merged delta"
            extended = block.extend(group, step)
            step = extended if isinstance(extended, Apply) else (yield from extended)
        return step

    def scratch_bytes(self, group: Group) -> int | None:
        need = self.inner.scratch_bytes(group)
        for block in self.blocks:
            need = block.scratch_bytes(group, need)
        return need

    def cost(self, group: Group) -> float:
        need = self.scratch_bytes(group)
        # Where a block needs the tensor whole, it decomposes a matrix.
        own = 0.0 if need is None or need == self.inner.scratch_bytes(group) else decomposed(group)
        return self.inner.cost(group) + own

    def censuses(self, group: Group) -> int:
        return self.inner.censuses(group) + sum(block.censuses(group) for block in self.blocks)

    def takes_strips(self, group: Group) -> bool:
        return self.inner.takes_strips(group) and all(block.takes_strips(group) for block in self.blocks)

    def by_slices(self, group: Group) -> range:
        # Blocks that need the tensor whole ask for more.
        own = self.scratch_bytes(group) != self.inner.scratch_bytes(group)
        return range(0) if own else self.inner.by_slices(group)

    def together(self, group: Group) -> bool:
        return self.inner.scratch_bytes(group) is None and all(block.together(group) for block in self.blocks)

    def stacks(self, group: Group) -> bool:
        return self.inner.scratch_bytes(group) is None and all(block.stacks(group) for block in self.blocks)

    @property
    def uses_layout(self) -> bool:
        return True

    @property
    def surveys(self) -> bool:
        return self.inner.surveys


def why_not(method: Method, block: str) -> str | None:
    """Return why ``method`` cannot take a block, or None."""
    if not method.adds_delta:
        return f"{method.name} does not add a merged delta to a base, which {block} could change"
    if isinstance(method, Extended) and any(own.name == block for own in method.blocks):
        return f"{method.name} has it already; set its own parameters ({', '.join(p.name for p in BOOST_PARAMETERS)})"
    return None


@functools.cache
def with_blocks(method: Method, names: frozenset[str]) -> Method:
    """Return ``method`` with blocks; ValueError where it cannot take one."""
    for name in names:
        if reason := why_not(method, name):
            raise ValueError(reason)
    blocks = tuple(block for block in BLOCKS.values() if block.name in names)
    declared = {
        "__doc__": method.__doc__,
        "name": "+".join([method.name, *(block.name for block in blocks)]),
        "inner": method,
        "blocks": blocks,
        "inputs": method.inputs,
        "parameters": (*method.parameters, *(p for block in blocks for p in block.parameters)),
        "semantics": method.semantics,
        "paper": "; ".join([method.paper, *(f"{block.name}: {block.paper}" for block in blocks)]),
    }
    return type("ExtendedMethod", (Extended,), declared)()
