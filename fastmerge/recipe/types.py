"""The typed recipe that planning works with. ``load`` makes one from YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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
class SourceSpec:
    """One input of a slice. ``layers`` is [start, end) or None for the whole model. ``where`` locates it in the recipe."""

    model: ModelRef
    layers: tuple[int, int] | None = None
    parameters: dict[str, Any] = field(default_factory=dict, hash=False, compare=False)
    where: str = ""


@dataclass(frozen=True)
class SliceSpec:
    """A run of output layers and the inputs that they are merged from. A ``models:`` recipe is one slice without layer ranges."""

    sources: tuple[SourceSpec, ...]
    base: ModelRef | None = None
    parameters: dict[str, Any] = field(default_factory=dict, hash=False, compare=False)
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
    """

    path: str
    text: str
    method: str
    slices: tuple[SliceSpec, ...]
    base: ModelRef | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: TokenizerSpec | None = None
    chat_template: str | None = None
    semantics: str | None = None
    seed: int = 0

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """Every model that the recipe names, base first, each once."""
        refs = [self.base, *(ref for s in self.slices for ref in (s.base, *(source.model for source in s.sources)))]
        return tuple(dict.fromkeys(ref for ref in refs if ref is not None))
