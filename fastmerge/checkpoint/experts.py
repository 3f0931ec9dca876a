"""What experts are called in both layouts, and how a stack of them is ordered."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

ROLES = {
    "gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down",
}  # fmt: skip
"""The projections of an expert by their names on the hub."""

_SINGLE = re.compile(r"(.*\.)(\w+)\.experts\.(\d+)\.(\w+)\.weight")
_STACK = re.compile(r"(.*\.)(\w+)\.experts\.((?:gate_up|down)_proj(?:_bias)?)")


class Single(NamedTuple):
    """The weight of one projection of one expert: ``before`` + ``block`` + ``.experts.3.w1.weight``."""

    before: str
    block: str
    expert: int
    projection: str

    @property
    def stack(self) -> tuple[str, str, str]:
        """What a stack that it belongs to has: text before the block, block, parameter."""
        return self.before, self.block, "down_proj" if ROLES[self.projection] == "down" else "gate_up_proj"

    @property
    def half(self) -> int:
        """1 for up, whose rows lie below those of gate; 0 for others."""
        return int(ROLES[self.projection] == "up")


class Stack(NamedTuple):
    """The weights, or biases, of projections of all experts of a layer: ``before`` + ``block.experts.gate_up_proj``."""

    before: str
    block: str
    parameter: str

    @property
    def dimensions(self) -> int:
        return 2 if self.parameter.endswith("_bias") else 3


def single_of(name: str) -> Single | None:
    """Take the name of one expert's weight apart; None for other names."""
    match = _SINGLE.fullmatch(name) if ".experts." in name else None
    if match is None or match[4] not in ROLES:
        return None
    return Single(match[1], match[2], int(match[3]), match[4])


def stack_of(name: str) -> Stack | None:
    """Take the name of a stack of experts apart; None for other names."""
    match = _STACK.fullmatch(name) if ".experts." in name else None
    return Stack(match[1], match[2], match[3]) if match else None


class Naming(NamedTuple):
    """How a model names its experts: what the block is called, its projections by role, and whether they are stacked.

    ``stacked`` is None for a model without experts in either layout.
    """

    block: str | None = None
    projections: Mapping[str, str] = {}
    stacked: bool | None = None


def naming_of(names: Iterable[str]) -> Naming:
    """Return how the experts among ``names`` are named."""
    for name in names:
        if single := single_of(name):
            short = single.projection.startswith("w")
            called = {role: name for name, role in ROLES.items() if name.startswith("w") == short}
            return Naming(single.block, called, False)
        if stack := stack_of(name):
            return Naming(stack.block, {role: f"{role}_proj" for role in ("gate", "up", "down")}, True)
    return Naming()


def in_block(names: Iterable[str], block: str | None) -> dict[str, str]:
    """Return what every name is if the block with the experts is called ``block``, for router and shared ones, too."""
    names = list(names)
    own = naming_of(names).block
    if own is None or block is None or own == block:
        return {name: name for name in names}
    befores = {found.before for name in names if (found := single_of(name) or stack_of(name))}
    moved = {f"{before}{own}.": f"{before}{block}." for before in befores}
    return {name: _moved(name, moved) if f".{own}." in name else name for name in names}


def _moved(name: str, moved: Mapping[str, str]) -> str:
    return next((new + name.removeprefix(old) for old, new in moved.items() if name.startswith(old)), name)
