"""The typed recipe that planning works with. ``load`` makes one from YAML."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from .filters import NameFilter

if TYPE_CHECKING:
    from ..checkpoint.distributed.tables import NameTable
    from .document import Document
    from .mixtures import Mixture

Scalar: TypeAlias = bool | int | float | str

MISSING = ("base", "merge", "drop", "error")
"""What becomes of a tensor that some models lack: that of the base (or first model) is copied; the models that have it
are merged; it is left out; the merge is refused."""


@dataclass(frozen=True)
class ModelRef:
    """A model as a recipe names it: ``path[@revision][+lora[@revision]]``. Hashable; equal references are one model.

    Attributes:
        path:     as written; spellings of one folder (``base/``, a link to it) are equal.
        identity: what is compared in place of path and revision.
        folder:   where it lies, for the result of another document of the recipe; None for what the path says.
    """

    path: str = field(compare=False)
    revision: str | None = field(default=None, compare=False)
    lora: ModelRef | None = None
    folder: str | None = field(default=None, compare=False)
    identity: tuple[str, str | None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        folder = os.path.expanduser(self.path)
        if os.path.isdir(folder):
            # A folder has no revisions, unless it is a repository in the hub's cache.
            cached = os.path.isdir(os.path.join(folder, "snapshots"))
            identity = os.path.realpath(folder), self.revision if cached else None
        else:
            identity = os.path.normpath(self.path), self.revision
        object.__setattr__(self, "identity", identity)

    def __str__(self) -> str:
        text = self.path + (f"@{self.revision}" if self.revision else "")
        return text + (f"+{self.lora}" if self.lora else "")


@dataclass(frozen=True)
class Branch:
    """One alternative of a setting: ``value`` for the tensors that ``filter`` matches.

    Attributes:
        value:  a scalar, or a tuple: a gradient over the layers of the slice.
        filter: None matches every tensor.
        where:  its place in the recipe, for messages.
    """

    value: Scalar | tuple[Scalar, ...]
    filter: NameFilter | None = None
    where: str = ""

    def matches(self, tensor_name: str, name_in_source: str | None = None) -> bool:
        """Whether the value is for a tensor: by its name in the output, or for ``filter`` in the input, where given."""
        if self.filter is None:
            return True
        return self.filter.matches((self.filter.kind == "filter" and name_in_source) or tensor_name)


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
    """A run of output layers and what they are merged from. A ``models:`` recipe is one slice without layers.

    ``method`` and ``base`` are its own ones; None takes those of the recipe.
    """

    sources: tuple[SourceSpec, ...]
    base: ModelRef | None = None
    parameters: Parameters = field(default_factory=dict, hash=False, compare=False)
    where: str = ""
    method: str | None = None


@dataclass(frozen=True)
class Module:
    """A part of a model with its own slices, such as the vision tower; a recipe without ``modules:`` is one of them.

    Attributes:
        name:       as in the recipe.
        filters:    its tensors are those that any of these matches; empty for all that no other module has.
        slices:     at least one.
        parameters: weaker than those of its slices, stronger than those of the recipe.
    """

    name: str
    filters: tuple[NameFilter, ...]
    slices: tuple[SliceSpec, ...]
    parameters: Parameters = field(default_factory=dict, hash=False, compare=False)


@dataclass(frozen=True)
class Rule:
    """How some tensors are merged in another way; of several rules the first that matches counts.

    Attributes:
        filter:     matches the tensors of the rule by their names in the output; None for all.
        method:     None keeps that of the slice.
        sources:    the models that take part; empty for those of the slice.
        missing:    replaces the recipe's own.
        parameters: stronger than those of models, slices and the recipe.
    """

    filter: NameFilter | None
    method: str | None = None
    sources: tuple[SourceSpec, ...] = ()
    missing: str | None = None
    parameters: Parameters = field(default_factory=dict, hash=False, compare=False)
    where: str = ""


@dataclass(frozen=True)
class TokenSpec:
    """Where the embedding of one token comes from.

    Attributes:
        token:    as the tokenizer of the output spells it.
        source:   a model; ``zero`` for zeros; None for the rule that holds without an entry.
        token_of: the token of ``source`` to take instead, by its text or its id.
        force:    give the token this embedding in every model, also in those that know it.
    """

    token: str
    source: ModelRef | str | None = None
    token_of: str | int | None = None
    force: bool = False


@dataclass(frozen=True)
class TokenizerSpec:
    """Where the tokenizer comes from.

    Attributes:
        source: ``base``, ``union`` of the vocabularies of all models, or one model.
        tokens: sources of single tokens.
        pad_to_multiple_of: pad the vocabulary to a multiple of this; None keeps its size.
    """

    source: ModelRef | str
    tokens: tuple[TokenSpec, ...] = ()
    pad_to_multiple_of: int | None = None
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Recipe:
    """A merge, as its author wrote it, normalized.

    Attributes:
        path:       file it came from, for messages ("<recipe>" for text).
        text:       verbatim.
        name:       how other documents of the file refer to the result; empty for most.
        earlier:    the texts of the documents whose results it uses, each behind those that it uses itself.
        method:     merge method.
        modules:    at least one.
        base:       ``base_model``.
        parameters: top level.
        rules:      exceptions for single tensors, first match first.
        missing:    what becomes of a tensor that some models lack, one of ``MISSING``.
        integers:   whose integer and bool tensors are copied: the "first" or "last" input's, base first; "equal": any,
                    since they must be the same.
        dtype:      name of the dtype of the output unless ``out_dtype`` is given; None keeps the inputs'.
        out_dtype:  overrides ``dtype`` for the output.
        keep_float32: parts of names of tensors that stay float32 where an input is, whatever ``dtype`` says.
        tokenizer:  None copies the base's (or the first model's).
        chat_template: None, "auto", a name, or a Jinja template.
        names:      what the tensors of checkpoints of training are called; None takes the names that they have.
        config_source: folder with the config and the tokenizer of checkpoints of training that have none.
        semantics:  profile of the method; None takes its default.
        seed:       of the random methods.
        card:       what the author says of the result, for its model card: ``description``, ``tags``, ``license``...
        notes:      what the author should know, one sentence each: keys that have no effect.
        mixture:    for a mixture of experts of dense models: what its slices are.
        document:   that it was made of; None where it was made otherwise.
    """

    path: str
    text: str
    method: str
    modules: tuple[Module, ...]
    base: ModelRef | None = None
    parameters: Parameters = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    missing: str = "base"
    integers: str = "equal"
    name: str = ""
    earlier: tuple[str, ...] = ()
    dtype: str | None = None
    out_dtype: str | None = None
    keep_float32: tuple[NameFilter, ...] = ()
    tokenizer: TokenizerSpec | None = None
    chat_template: str | None = None
    names: NameTable | None = None
    config_source: str | None = None
    semantics: str | None = None
    seed: int = 0
    card: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    mixture: Mixture | None = None
    document: Document | None = field(default=None, repr=False, compare=False)

    def where(self, *keys: str) -> str:
        """Return the place of the first of these keys that it has, else of its beginning, for messages."""
        if self.document is None:
            return f"{self.path}: {keys[0]}" if keys else self.path
        key = next((key for key in keys if key in self.document.data), None)
        return self.document.where(() if key is None else (key,))

    @property
    def whole_text(self) -> str:
        """The text of every document that it takes to make the result."""
        return "---\n".join([*self.earlier, self.text])

    @property
    def slices(self) -> tuple[SliceSpec, ...]:
        """The slices of all modules."""
        return tuple(slice_ for module in self.modules for slice_ in module.slices)

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """Every model that the recipe names, base first, each once."""
        refs = [self.base, *(ref for s in self.slices for ref in (s.base, *(source.model for source in s.sources)))]
        refs += [source.model for rule in self.rules for source in rule.sources]
        return tuple(dict.fromkeys(ref for ref in refs if ref is not None))

    def with_models(self, change: Callable[[ModelRef], ModelRef]) -> Recipe:
        """Return the recipe with every reference to a model changed."""

        def base_of(ref: ModelRef | None) -> ModelRef | None:
            return None if ref is None else change(ref)

        def of(sources: tuple[SourceSpec, ...]) -> tuple[SourceSpec, ...]:
            return tuple(replace(source, model=change(source.model)) for source in sources)

        def slices_of(module: Module) -> tuple[SliceSpec, ...]:
            return tuple(replace(s, base=base_of(s.base), sources=of(s.sources)) for s in module.slices)

        spec = self.tokenizer
        if spec is not None:
            tokens = tuple(
                replace(token, source=change(token.source)) if isinstance(token.source, ModelRef) else token
                for token in spec.tokens
            )
            source = change(spec.source) if isinstance(spec.source, ModelRef) else spec.source
            spec = replace(spec, source=source, tokens=tokens)
        return replace(
            self,
            base=base_of(self.base),
            modules=tuple(replace(module, slices=slices_of(module)) for module in self.modules),
            rules=tuple(replace(rule, sources=of(rule.sources)) for rule in self.rules),
            tokenizer=spec,
        )
