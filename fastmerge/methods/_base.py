"""What a merge method declares, and how it is found.

A method is one file of this folder: a class with ``@method``. It is at once in the recipe schema,
the command line, the table of methods and the test matrix, on every backend.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ..apply import Apply
from ..survey import Survey

REQUIRED: Any = object()

Solve = Generator[Survey, Any, Apply]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method, as recipes name it.

    Attributes:
        name:      key in the recipe, e.g. ``density``.
        kind:      float, int or bool.
        default:   value when the recipe gives none; REQUIRED makes it an error.
        per_model: True for one value per input (``weight``), False for one per tensor (``lambda``).
        minimum, maximum: inclusive range; None is unbounded.
        doc:       one sentence, with the unit or meaning.
    """

    name: str
    kind: type
    default: Any = REQUIRED
    per_model: bool = False
    minimum: float | None = None
    maximum: float | None = None
    doc: str = ""


@dataclass(frozen=True)
class Group:
    """Everything a method may know of one output tensor: no tensor data.

    Attributes:
        name:      name of the output tensor.
        shape:     its shape.
        models:    number of inputs without the base.
        values:    parameters by name: a value, or for per-model parameters a tuple in the order of the inputs (without the base).
        seed:      seed of the counter-based random numbers.
        semantics: the tool whose definition is followed, e.g. ``mergekit``.
    """

    name: str
    shape: tuple[int, ...]
    models: int
    values: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    semantics: str = "mergekit"

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    def __getitem__(self, parameter: str) -> Any:
        return self.values[parameter]


class Method(ABC):
    """A merge method. Its docstring holds formula, paper and edge cases.

    ``merge`` is a generator: it yields surveys, receives their answers, and returns the apply step. A
    method that needs no survey is a plain function that returns the apply step.

    Attributes:
        name:       as in recipes (``merge_method``).
        base:       "required", "optional" or "ignored" (then a base is one input among the others).
        inputs:     least and greatest number of inputs without the base; None is unbounded.
        parameters: what the recipe may set.
        semantics:  profiles that the method implements; the first is the default.
        paper:      citation with arXiv number, or the tool that defined the method.
    """

    name: ClassVar[str]
    base: ClassVar[Literal["required", "optional", "ignored"]]
    inputs: ClassVar[tuple[int, int | None]] = (1, None)
    parameters: ClassVar[tuple[Parameter, ...]] = ()
    semantics: ClassVar[tuple[str, ...]] = ("mergekit",)
    paper: ClassVar[str] = ""

    @abstractmethod
    def merge(self, group: Group) -> Solve | Apply:
        """Yield surveys of the tensor that ``group`` describes and return its apply step."""

    @property
    def surveys(self) -> bool:
        """True when the method may read its inputs before it applies."""
        return inspect.isgeneratorfunction(self.merge)


METHODS: dict[str, Method] = {}


def method(cls: type[Method]) -> type[Method]:
    """Register a merge method (class decorator)."""
    if cls.name in METHODS:
        raise ValueError(
            f"two merge methods are called {cls.name!r}: {type(METHODS[cls.name]).__module__} and {cls.__module__}"
        )
    METHODS[cls.name] = cls()
    return cls
