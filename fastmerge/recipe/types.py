"""The typed recipe that planning works with. ``load`` makes one from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Scalar: TypeAlias = bool | int | float | str


@dataclass(frozen=True)
class ModelRef:
    """A model as a recipe names it: ``path[@revision][+lora[@revision]]``. Hashable; equal references are one model."""

    path: str
    revision: str | None = None
    lora: ModelRef | None = None

    def __str__(self) -> str:
        text = self.path + (f"@{self.revision}" if self.revision else "")
        return text + (f"+{self.lora}" if self.lora else "")


@dataclass(frozen=True)
class Branch:
    """One alternative of a setting: ``value`` for the tensors whose name contains ``filter``.

    Attributes:
        value:  a scalar, or a tuple: a gradient over the layers of the slice.
        filter: None matches every tensor.
        where:  its place in the recipe, for messages.
    """

    value: Scalar | tuple[Scalar, ...]
    filter: str | None = None
    where: str = ""

    def matches(self, tensor_name: str) -> bool:
        return self.filter is None or self.filter in tensor_name


@dataclass(frozen=True)
class Setting:
    """The value of a parameter as a recipe gives it; the first branch that matches the tensor counts."""

    branches: tuple[Branch, ...]
    where: str = ""


Parameters: TypeAlias = Mapping[str, Setting]


@dataclass(frozen=True)
class SourceSpec:
    """One input of a slice. ``layers`` is [start, end) or None for all; ``where`` locates it in the recipe."""

    model: ModelRef
    layers: tuple[int, int] | None = None
    parameters: Parameters = field(default_factory=dict, hash=False, compare=False)
    where: str = ""


@dataclass(frozen=True)
class SliceSpec:
    """A run of output layers and what they are merged from. A ``models:`` recipe is one slice without layers."""

    sources: tuple[SourceSpec, ...]
    base: ModelRef | None = None
    parameters: Parameters = field(default_factory=dict, hash=False, compare=False)
    where: str = ""


@dataclass(frozen=True)
class TokenizerSpec:
    """Where the tokenizer comes from: ``base`` or one model."""

    source: ModelRef | str


@dataclass(frozen=True)
class Recipe:
    """A merge, as its author wrote it, normalized.

    Attributes:
        path:       file it came from, for messages ("<recipe>" for text).
        text:       verbatim.
        method:     merge method.
        slices:     at least one.
        base:       ``base_model``.
        parameters: top level.
        dtype:      name of the dtype of the output unless ``out_dtype`` is given; None keeps the inputs'.
        out_dtype:  overrides ``dtype`` for the output.
        tokenizer:  None copies the base's (or the first model's).
        chat_template: None, "auto", a name, or a Jinja template.
        semantics:  profile of the method; None takes its default.
        seed:       of the random methods.
        notes:      what the author should know, one sentence each: keys that have no effect.
    """

    path: str
    text: str
    method: str
    slices: tuple[SliceSpec, ...]
    base: ModelRef | None = None
    parameters: Parameters = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: TokenizerSpec | None = None
    chat_template: str | None = None
    semantics: str | None = None
    seed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """Every model that the recipe names, base first, each once."""
        refs = [self.base, *(ref for s in self.slices for ref in (s.base, *(source.model for source in s.sources)))]
        return tuple(dict.fromkeys(ref for ref in refs if ref is not None))
