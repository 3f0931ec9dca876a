"""Which tensors of two models go into an adapter, and what becomes of the others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..checkpoint.layers import belongs_before_layers, split_layer
from ..errors import InvalidInput, Problem
from ..methods import PROJECTIONS
from ..plan.findings import Findings
from ..plan.models import MERGED, OpenModel, is_computed, is_head, is_vocabulary, open_models
from ..plan.types import InputTensor
from ..recipe.references import parse_reference
from ..recipe.types import Module, Recipe, SliceSpec, SourceSpec

__all__ = ["Other", "Pair", "Selection", "Wanted", "is_embedding", "module_path", "open_pair", "savable", "select"]

# Their matrices are stored [in, out]; PEFT calls that fan_in_fan_out.
_TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")

# The same tensor of the base and of the fine-tuned model.
Pair = tuple[InputTensor, InputTensor]


@dataclass(frozen=True)
class Other:
    """A tensor that the adapter does not approximate although the models differ in it.

    Attributes:
        name:   of the tensor.
        reason: why there is no LoRA of it.
        saved:  True where the adapter holds it whole (``modules_to_save``).
    """

    name: str
    reason: str
    saved: bool = False


@dataclass(frozen=True)
class Selection:
    """Attributes:
    matrices: pairs that LoRA can approximate, in the order of the base's files.
    others:   pairs of one shape that it cannot, with the reason; they are compared, and named where they differ.
    unpaired: what has no counterpart.
    """

    matrices: list[Pair]
    others: list[tuple[Pair, str]]
    unpaired: list[Other]

    @property
    def pairs(self) -> list[Pair]:
        return [*self.matrices, *(pair for pair, _ in self.others)]


def open_pair(base: str, tuned: str) -> tuple[OpenModel, OpenModel, tuple[str, ...]]:
    """Open both models, given as recipes name models; return them, and what is to be noted of them.

    Raises:
        InvalidInput: one cannot be opened, is quantized or transposed; all problems are named.
    """
    try:
        references = [parse_reference(text) for text in (base, tuned)]
    except ValueError as error:
        raise InvalidInput([Problem("extract", str(error))]) from error
    findings = Findings()
    if references[0].lora is not None:
        findings.problem(f"extract: base {base}", "has an adapter", "an adapter's base is a plain model")
    module = Module("default", (), (SliceSpec((SourceSpec(references[1]),)),))
    recipe = Recipe("extract", "", "", (module,), references[0])
    models = open_models(recipe, findings)
    for model in models.values():
        kind = (model.checkpoint.config or {}).get("model_type")
        if kind in _TRANSPOSED:
            what = f"stores its matrices transposed (model_type {kind})"
            findings.problem(f"extract: model {model}", what, "extracting from such models is not offered")
    findings.stop()
    return models[references[0]], models[references[1]], tuple(findings.notes)


@dataclass(frozen=True)
class Wanted:
    """Which tensors are to be approximated.

    Attributes:
        matrices:   ``attn_mlp`` or ``all`` linear layers, as in spectral methods; of no weight beside ``include``.
        include:    regular expressions, of which one is found in the module's name; () for all.
        exclude:    regular expressions of which none is found there.
        embeddings: input embeddings, too.
    """

    matrices: str = "attn_mlp"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    embeddings: bool = False

    def leaves_out(self, name: str) -> str:
        """Return why a linear layer is left out; "" where it is wanted."""
        module = module_path(name)
        if any(re.search(pattern, module) for pattern in self.exclude):
            return "it is excluded (--exclude)"
        if self.include:
            found = any(re.search(pattern, module) for pattern in self.include)
            return "" if found else "it is not among those that are included (--include)"
        if self.matrices == "attn_mlp" and not (split_layer(name) and module.rpartition(".")[2] in PROJECTIONS):
            return "it is no attention or MLP projection in a numbered layer (--matrices all takes it)"
        return ""


def select(base: OpenModel, tuned: OpenModel, wanted: Wanted) -> Selection:
    """Sort the tensors of both models."""
    selection = Selection([], [], [])
    for name, tensor in base.tensors.items():
        other = tuned.tensors.get(name)
        if is_computed(tensor):
            continue
        if other is None:
            selection.unpaired.append(Other(name, "it is only in the base"))
        elif other.shape != tensor.shape:
            what = f"its shape is {list(other.shape)}, in the base {list(tensor.shape)}"
            selection.unpaired.append(Other(name, what))
        elif reason := _no_lora((tensor, other), wanted):
            selection.others.append(((tensor, other), reason))
        else:
            selection.matrices.append((tensor, other))
    selection.unpaired.extend(
        Other(name, "it is only in the fine-tuned model")
        for name, tensor in tuned.tensors.items()
        if name not in base.tensors and not is_computed(tensor)
    )
    return selection


def is_embedding(name: str) -> bool:
    """True for an input embedding, whose LoRA PEFT stores in its own way."""
    return is_vocabulary(name) and not is_head(name)


def _no_lora(pair: Pair, wanted: Wanted) -> str:
    """Return why PEFT's LoRA of a layer cannot stand for the difference; "" where it can."""
    name, shape = pair[0].name, pair[0].shape
    for tensor in pair:
        if tensor.dtype not in MERGED:
            return f"its dtype is {tensor.dtype}"
    if len(shape) != 2 or not all(shape):
        return "it is no matrix"
    if not name.endswith(".weight"):
        return "it is no weight of a linear layer"
    if is_embedding(name) and wanted.embeddings:
        return Wanted("all", (), wanted.exclude).leaves_out(name)
    if is_embedding(name):
        return "it is an embedding (--embeddings takes it)"
    if belongs_before_layers(name):
        return "it is an embedding"
    return wanted.leaves_out(name)


def savable(others: Sequence[Other], matrices: Sequence[Pair]) -> list[Other]:
    """Mark those whose whole module PEFT can replace: no part of it has an adapter."""
    adapted = {module_path(pair[0].name) for pair in matrices}
    inside = {parent for module in adapted for parent in _parents(module)}
    return [
        replace(other, saved=bool(module_path(other.name)) and module_path(other.name) not in inside)
        for other in others
    ]


def module_path(name: str) -> str:
    """Return the module that a parameter belongs to."""
    return name.rpartition(".")[0]


def _parents(module: str) -> list[str]:
    """Return the module and all that hold it."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
