"""What a merge method declares, and how it is found.

A method is one file of this folder: a class with ``@method``. It is at once in the recipe schema,
the command line, the table of methods and the test matrix, on every backend.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from .apply import Apply
from .survey import Survey


class _Required:
    """A default that there is not."""

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Any = _Required()

# A survey, then its answer, as often as needed; in the end the apply step.
Solve = Generator[Survey, Any, Apply]

_FLOAT32_MAX = 3.4028234663852886e38


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method, as recipes name it.

    Attributes:
        name:      key in the recipe, e.g. ``density``.
        kind:      float, int, bool or str.
        default:   value when the recipe gives none; REQUIRED makes it an error.
        per_model: True for one value per input (``weight``), False for one per tensor (``lambda``).
        minimum, maximum: inclusive range; None is unbounded.
        saturates: in recipes, a value above ``maximum`` counts as ``maximum``.
        choices:   the values of a str.
        semantics: profiles that know the parameter; empty stands for all of the method's.
        defaults:  defaults of profiles whose own is another one, as (profile, value).
        doc:       one sentence, with the unit or meaning.
        neutral:   value at which one model alone returns itself; None: the default is one.
        example:   value at which fine-tunes show what the parameter does; None: the middle of its range, if it has one,
                   else the default or the neutral value.
    """

    name: str
    kind: type
    default: Any = REQUIRED
    per_model: bool = False
    minimum: float | None = None
    maximum: float | None = None
    saturates: bool = False
    choices: tuple[str, ...] = ()
    semantics: tuple[str, ...] = ()
    defaults: tuple[tuple[str, Any], ...] = ()
    doc: str = ""
    neutral: Any = None
    example: Any = None

    @property
    def expected(self) -> str:
        """What a value must be, e.g. ``a number in [0, 1]``."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return "text"
        noun = "a whole number" if self.kind is int else "a number"
        low, high = self.minimum, self.maximum
        if low is not None and high is not None:
            return f"{noun} in [{low:g}, {high:g}]"
        if low is not None:
            return f"{noun} >= {low:g}"
        return noun if high is None else f"{noun} <= {high:g}"

    def accepts(self, value: Any) -> bool:
        """True when ``value`` (of one model, for per-model parameters) has the kind and lies in the range."""
        if self.kind in (bool, str):
            return isinstance(value, self.kind) and (not self.choices or value in self.choices)
        numbers = (int,) if self.kind is int else (int, float)
        if not isinstance(value, numbers) or isinstance(value, bool):
            return False
        if not math.isfinite(value) or abs(value) > _FLOAT32_MAX:
            return False
        return (self.minimum is None or value >= self.minimum) and (self.maximum is None or value <= self.maximum)


@dataclass(frozen=True)
class Layout:
    """Where a tensor stands in its model, from names and config.

    Attributes:
        layer:    index of its layer in the stack, from 0; None outside the layers (embeddings, final norm, head).
        layers:   layers of that stack; 0 outside.
        heads:    attention heads of a layer; 0: not known.
        kv_heads: heads of its keys and values; 0: not known.
    """

    layer: int | None = None
    layers: int = 0
    heads: int = 0
    kv_heads: int = 0


@dataclass(frozen=True)
class Group:
    """Everything a method may know of one output tensor: no tensor data.

    Attributes:
        name:      name of the output tensor.
        shape:     its shape.
        models:    number of inputs without the base.
        values:    parameters by name: a value, or for per-model ones a tuple with one value per input without the base.
        seed:      seed of the counter-based random numbers.
        semantics: the tool whose definition is followed, e.g. ``mergekit``.
        layout:    its place in the model; None where a tensor is merged without one.
        censuses:  what censuses of the whole model found, by name; see ``census.Census``.
    """

    name: str
    shape: tuple[int, ...]
    models: int
    values: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    semantics: str = "mergekit"
    layout: Layout | None = None
    censuses: Mapping[str, Any] = field(default_factory=dict)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def __getitem__(self, parameter: str) -> Any:
        return self.values[parameter]


class Method(ABC):
    """A merge method. Its docstring holds formula, paper and edge cases.

    ``merge`` is a generator: it yields surveys, receives their answers, and returns the apply step. A
    method that needs no survey is a plain function that returns the apply step. It raises ValueError,
    naming the tensor, for what only it can know; before its first survey where that is possible.

    Attributes:
        name:       as in recipes (``merge_method``).
        base:       "required", "optional" or "ignored" (then a base is one input among the others).
        inputs:     least and greatest number of inputs without the base; None is unbounded.
        parameters: what the recipe may set.
        semantics:  profiles that the method implements; the first is the default.
        summary:    a few words for lists, 42 characters at most; the formula stands there without them.
        paper:      citation with arXiv number, or the tool that defined the method.
        adds_delta: True when the apply step adds a merged delta to the base, a ``DeltaMerge``: blocks can change it.
        random:     True when it draws random numbers, by the seed, the name of the tensor and the index of the model.
        ordered:    True when the order of the models matters, if only to the last bits.
        homogeneous: True when inputs times a power of two give the result times it.
        on_strips:  True when operations, the steps and surveys of this package, and functions of ``arrays`` do all
                    work on elements: it then runs without torch, on strips. False gets tensors.
        leaves:     True when it makes nothing but keep rules and factors of its answers, and returns a
                    ``SparseMerge`` or ``WeightedSum``: on a GPU they then stay there, and a merge waits for nothing.
        neutral:    True when there are values, ``Parameter.neutral``, with which one model returns itself; those that
                    decompose matrices, on other tensors.
    """

    name: ClassVar[str]
    base: ClassVar[Literal["required", "optional", "ignored"]]
    inputs: ClassVar[tuple[int, int | None]] = (1, None)
    parameters: ClassVar[tuple[Parameter, ...]] = ()
    semantics: ClassVar[tuple[str, ...]] = ("mergekit",)
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    adds_delta: ClassVar[bool] = True
    random: ClassVar[bool] = False
    ordered: ClassVar[bool] = False
    homogeneous: ClassVar[bool] = True
    neutral: ClassVar[bool] = True
    on_strips: ClassVar[bool] = False
    leaves: ClassVar[bool] = False

    def __repr__(self) -> str:
        return f"<{self.name}: {self.summary}>"

    @abstractmethod
    def merge(self, group: Group) -> Solve | Apply:
        """Yield surveys of the tensor that ``group`` describes and return its apply step."""

    def scratch_bytes(self, group: Group) -> int | None:
        """Return None when the apply step takes a tensor part by part, as most do.

        A method whose apply needs the whole tensor at once returns a bound of the memory that this takes beside
        the inputs and the output, in bytes; the engine finds room for all of it, or says how much is missing.
        """
        return None

    def apart(self, group: Group) -> range:
        """Return the first dimensions of a tensor that has to come whole along which it may be cut all the same.

        Its slices are merged each for itself, with the same bits, however many there are.
        """
        return range(0)

    def by_slices(self, group: Group) -> range:
        """Return the first dimensions of a tensor that has to come whole along which ranks may cut it all the same.

        What is asked of the whole tensor is asked of them together, and whole slices are all that each must hold.
        """
        return range(0)

    def together(self, group: Group) -> bool:
        """Return True when ranks that hold rows or columns of this matrix can merge it together: a ``PartedMerge``."""
        return False

    def stacks(self, group: Group) -> bool:
        """Return True when matrices of this tensor can be changed in a batch with those of others: a ``Stack``."""
        return False

    def cost(self, group: Group) -> float:
        """Return about how much work the merge of a tensor is, by which tensors are dealt out to ranks."""
        return float(group.models * group.numel)

    def censuses(self, group: Group) -> int:
        """Return how often the method surveys all tensors of a model before any of them is merged, at most."""
        return 0

    def takes_strips(self, group: Group) -> bool:
        """Return True when this tensor can be merged on strips; see ``on_strips``."""
        return self.on_strips

    def identities(self, groups: Sequence[Group]) -> Iterable[str]:
        """Return what decides the result beside inputs and values: of files that a parameter names, what they hold."""
        return ()

    def refusals(self, groups: Sequence[Group]) -> Iterable[str]:
        """Return why the method cannot merge what it is to merge in all, where no single tensor tells."""
        return ()

    @property
    def uses_layout(self) -> bool:
        """True when the method asks for ``group.layout``."""
        return False

    @property
    def surveys(self) -> bool:
        """True when the method may read its inputs before it applies."""
        return inspect.isgeneratorfunction(self.merge)

    def parameters_of(self, semantics: str) -> tuple[Parameter, ...]:
        """Return the parameters that a profile knows, with its defaults."""
        known = (p for p in self.parameters if not p.semantics or semantics in p.semantics)
        return tuple(replace(p, default=dict(p.defaults).get(semantics, p.default)) for p in known)


METHODS: dict[str, Method] = {}
"""The methods that are loaded, by name."""

HOMES: dict[str, str] = {}
"""The modules of methods that are loaded when their name is used: they alone may register it."""


def method(cls: type[Method]) -> type[Method]:
    """Register a merge method (class decorator)."""
    home = type(METHODS[cls.name]).__module__ if cls.name in METHODS else HOMES.get(cls.name, cls.__module__)
    if cls.name in METHODS or home != cls.__module__:
        raise ValueError(f"two merge methods are called {cls.name!r}: {home} and {cls.__module__}")
    METHODS[cls.name] = cls()
    return cls
