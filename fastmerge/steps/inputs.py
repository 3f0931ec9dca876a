"""Inputs: what belongs to the base of a merge, and to each of the other models, in the order of the recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Inputs(Generic[T]):
    """The inputs of one output tensor: where they lie (``InputTensor``), or their values (``Tensor``).

    Attributes:
        base:    that of the base, or None for methods that have none.
        tensors: those of the other models, in the order of the recipe.
    """

    base: T | None
    tensors: tuple[T, ...]

    @property
    def every(self) -> tuple[T, ...]:
        """The base, if there is one, and the tensors."""
        return self.tensors if self.base is None else (self.base, *self.tensors)

    def map(self, change: Callable[[T], U]) -> Inputs[U]:
        """Return ``change`` of each input; it is called in the order of ``every``."""
        return self.like([change(value) for value in self.every])

    def like(self, every: Sequence[U]) -> Inputs[U]:
        """Return other inputs of the same models; ``every`` has the base first, if there is one."""
        return split(every, self.base is not None)


def split(every: Sequence[T], has_base: bool) -> Inputs[T]:
    """Return ``every`` as inputs, the first one as the base if there is one."""
    return Inputs(every[0], tuple(every[1:])) if has_base else Inputs(None, tuple(every))
