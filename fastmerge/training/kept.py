"""What one average keeps on this rank, and its state for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidInput, Problem
from ..sharded import like_shard, local
from . import memory
from .rules import Rule
from .tracked import Named

__all__ = ["Average"]

# With less a change as large as the weight itself hardly moves a bfloat16: half its last place is 2^-9 to 2^-8 of it.
_LEAST_SHARE = 2**-8


@dataclass
class Average:
    """One average: its rule, what it keeps, slots of tensors by name, and how many steps it took in."""

    rule: Rule
    kept: list[Named]
    count: int = 0

    @classmethod
    def of(cls, rule: Rule, values: Named, dtype: torch.dtype, on_host: bool) -> Average:
        """Return an average of tensors like ``values`` that took nothing in; ``dtype`` is that of running averages."""
        share = getattr(rule, "share", None)
        if dtype == torch.bfloat16 and share is not None and share(1 << 40) < _LEAST_SHARE:
            what = f"takes in less than 1/256 of a weight at a step in the end: an average in {dtype} would stand still"
            raise InvalidInput([Problem(rule.text, what, "keep it in float32")])
        slots = [
            {
                name: memory.allocate(value, value.dtype if rule.own_dtype else dtype, on_host)
                for name, value in values.items()
            }
            for _ in range(rule.slots)
        ]
        return cls(rule, slots)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for slot in self.kept for tensor in slot.values())

    def tensors(self, name: str) -> list[Tensor]:
        """Return the tensor of every slot."""
        return [slot[name] for slot in self.kept]

    def state(self, tracked: Named) -> dict[str, Any]:
        """Return the state, its tensors as DTensors where those that are averaged are some."""
        return {
            "rule": self.rule.text,
            "count": self.count,
            "kept": {
                str(i): {name: like_shard(part, tracked[name]) for name, part in slot.items()}
                for i, slot in enumerate(self.kept)
            },
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a state that fits."""
        for i, slot in enumerate(self.kept):
            for name, part in slot.items():
                part.copy_(local(state["kept"][str(i)][name]))
        self.count = state["count"]
