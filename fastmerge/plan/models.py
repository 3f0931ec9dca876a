"""The models of a recipe, opened: headers read, layers found, adapters attached."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..checkpoint import Checkpoint, InputFile, locate, open_checkpoint, passed_over, read_adapter
from ..checkpoint.distributed import split_key
from ..checkpoint.distributed.tables import NamesError
from ..checkpoint.layers import LayerName, Stacks, config_layers, find_stacks, is_named, says_tied, split_layer
from ..checkpoint.locate import is_cached_repository
from ..checkpoint.quantized import decoded
from ..checkpoint.trained import as_hub_model, is_trained
from ..dtypes import DType, bfloat16, float16, float32, float64
from ..errors import CheckpointError, Problem
from ..recipe.document import place_of
from ..recipe.types import ModelRef, Recipe
from .adapting import attach
from .findings import Findings
from .types import InputModel, InputTensor

MERGED = (float64, float32, bfloat16, float16)
"""Dtypes that are merged and written; float64 is computed in float32."""

HEAD = "lm_head.weight"
"""The hub's name of the output head."""

_HEADS = ("lm_head", "embed_out")
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared")

# Buffers that transformers computes from the config and ignores in checkpoints; attn.bias only as a mask.
_COMPUTED = ("rotary_emb.inv_freq", "attn.masked_bias", "attention.masked_bias", "attn.bias", "position_ids")


@dataclass(frozen=True)
class OpenModel:
    """A model of the recipe and everything that its headers and config tell.

    Attributes:
        index:      into ``Plan.models``.
        reference:  as the recipe names it.
        checkpoint: the opened folder; a LoRA adapter's files are in ``files`` only.
        files:      every file that is read.
        tensors:    every tensor by name, in the order of the files, adapters attached.
        layer_names: the names that lie in a numbered layer, taken apart.
        stacks:     its layer stacks.
    """

    index: int
    reference: ModelRef
    checkpoint: Checkpoint
    files: tuple[InputFile, ...]
    tensors: dict[str, InputTensor]
    layer_names: dict[str, LayerName]
    stacks: Stacks

    def __str__(self) -> str:
        return str(self.reference)

    @cached_property
    def layers(self) -> list[dict[str, InputTensor]]:
        """The tensors of each layer of the main stack, by the name behind the layer's number; those beyond, too."""
        found: list[dict[str, InputTensor]] = [{} for _ in range(self.stacks.layers + self.stacks.beyond)]
        for name, parts in self.layer_names.items():
            if parts.stack == self.stacks.main:
                found[parts.index][parts.rest] = self.tensors[name]
        return found

    @cached_property
    def outside(self) -> dict[str, InputTensor]:
        """The tensors that are in no layer of the main stack, by name."""
        names = self.layer_names
        return {n: t for n, t in self.tensors.items() if n not in names or names[n].stack != self.stacks.main}

    @property
    def says_tied(self) -> bool | None:
        """``tie_word_embeddings`` of the config, or of the language model's in it; None where neither says."""
        return says_tied(self.checkpoint.config)

    @cached_property
    def embedding(self) -> InputTensor | None:
        """The input embedding, to which an output head may be tied."""
        return next((tensor for name, tensor in self.outside.items() if _module(name) in _EMBEDDINGS), None)

    @cached_property
    def main_dtype(self) -> DType | None:
        """The float dtype that holds most bytes of the weights, codes as bfloat16; None for a model without any."""
        sizes: dict[DType, int] = {}
        for tensor in self.tensors.values():
            if tensor.dtype in MERGED:
                dtype = bfloat16 if tensor.quantized else tensor.dtype
                sizes[dtype] = sizes.get(dtype, 0) + tensor.nbytes
        return max(sizes, key=lambda dtype: sizes[dtype], default=None)

    @property
    def record(self) -> InputModel:
        """The model as the plan lists it."""
        own = self.checkpoint
        elsewhere = is_trained(own) and own.folder != split_key(own.place)[0]
        return InputModel(str(self.reference), own.place, self.files, own.folder if elsewhere else None)


def is_head(name: str) -> bool:
    """True for the output head, which may be tied to the embedding."""
    return _module(name) in _HEADS


def is_vocabulary(name: str) -> bool:
    """True for tensors with one row per token."""
    return _module(name) in _HEADS + _EMBEDDINGS


def has_token_rows(name: str) -> bool:
    """True for what is aligned by token: tensors of the vocabulary, and the bias of a head."""
    return is_vocabulary(name) or is_head(name.removesuffix("bias") + "weight")


def is_computed(tensor: InputTensor) -> bool:
    """True for a buffer that transformers computes itself, so that no checkpoint needs it."""
    name = tensor.name
    return name.endswith(_COMPUTED) and (not name.endswith("attn.bias") or len(tensor.shape) == 4)


def _module(name: str) -> str:
    """Return the last part of a name before ``.weight``."""
    return name.removesuffix(".weight").rpartition(".")[2] if name.endswith(".weight") else ""


def open_models(recipe: Recipe, findings: Findings, trains: bool = False) -> dict[ModelRef, OpenModel]:
    """Open every model of the recipe. What is wrong with one is added to ``findings``; the others are returned.

    ``trains`` says that the output is a checkpoint of training: the recipe's table of names is its own, then.
    """
    if not recipe.models:
        findings.problem(recipe.where("models", "slices"), "names no model", "list the models to merge")
        findings.stop()
    opened: dict[ModelRef, Checkpoint] = {}
    split: dict[str, LayerName | None] = {}
    misnamed: set[str] = set()
    config_source = _config_source(recipe)
    models = {}
    for index, reference in enumerate(recipe.models):
        folder = ModelRef(reference.path, reference.revision)
        try:
            if folder not in opened:
                place = locate(reference.folder or reference.path, reference.revision, _folder_of(recipe))
                stored = as_hub_model(open_checkpoint(place), recipe.names, config_source)
                opened[folder] = decoded(stored)
                findings.problems.extend(_same_folder(recipe, folder, opened))
            model = _open(index, reference, opened[folder], split, findings, _folder_of(recipe))
        except CheckpointError as error:
            if isinstance(error, NamesError):
                if error.fault in misnamed:  # checkpoints of one run have one fault
                    continue
                misnamed.add(error.fault)
            # The place names the model already.
            findings.problem(_place(recipe, reference), str(error).removeprefix(f"{reference.path}: "))
        else:
            findings.problems.extend(_check(model))
            models[reference] = model
            for note in (
                *model.checkpoint.notes,
                *_revision(reference),
                *_ambiguous(recipe, reference),
                *_quantized(model),
            ):
                findings.note(note)
    _check_trained(recipe, models, ("config_source",) if trains else ("names", "config_source"), findings)
    return models


def _check_trained(
    recipe: Recipe, models: Mapping[ModelRef, OpenModel], keys: Sequence[str], findings: Findings
) -> None:
    """Find keys of the recipe that are of checkpoints of training, where all models are known and none is one."""
    given = [key for key in keys if getattr(recipe, key) is not None]
    if len(models) < len(recipe.models) or any(is_trained(model.checkpoint) for model in models.values()):
        return
    for key in given:
        what = "is of checkpoints of torch.distributed.checkpoint, and no model of the recipe is one"
        remedy = "leave it out, or merge with --format dcp" if key == "names" else "leave it out"
        findings.problem(recipe.where(key), what, remedy)


def _place(recipe: Recipe, reference: ModelRef) -> str:
    """Return where the recipe names a model."""
    written = recipe.document is None or recipe.document.nodes is not None
    place = place_of(recipe.path, recipe.text, str(reference)) if written else recipe.path
    return f"{place}: model {reference}"


def _same_folder(recipe: Recipe, reference: ModelRef, opened: Mapping[ModelRef, Checkpoint]) -> Iterator[Problem]:
    """Yield a problem for a hub id and a folder that turn out to be one model, which counts as two otherwise."""
    place = os.path.realpath(opened[reference].place)
    for other, checkpoint in opened.items():
        if other != reference and os.path.realpath(checkpoint.place) == place:
            yield Problem(_place(recipe, reference), f"is the same folder as {other}: {place}", "write both in one way")


def _revision(reference: ModelRef) -> Iterator[str]:
    local = os.path.isdir(os.path.expanduser(reference.path)) and not is_cached_repository(reference.path)
    if reference.revision and local:
        yield f"{reference}: a local folder has no revisions, so @{reference.revision} has no effect"


def _ambiguous(recipe: Recipe, reference: ModelRef) -> Iterator[str]:
    for part in filter(None, (reference if reference.folder is None else None, reference.lora)):
        if other := passed_over(part.path, part.revision, _folder_of(recipe)):
            yield f"{part.path}: is the one in the current directory, not {other} beside the recipe"


def _quantized(model: OpenModel) -> Iterator[str]:
    if model.checkpoint.quantized:
        formats = ", ".join(model.checkpoint.quantized)
        yield (
            f"{model} is quantized ({formats}): it is decoded while it is read, and the output is not quantized; "
            "its 16-bit tensors are bfloat16 unless the recipe's dtype says otherwise"
        )


def _folder_of(recipe: Recipe) -> str | None:
    return os.path.dirname(os.path.abspath(recipe.path)) if os.path.isfile(recipe.path) else None


def _config_source(recipe: Recipe) -> str | None:
    """Return the folder for checkpoints without a config: as models, beside the recipe where it is not found here."""
    if recipe.config_source is None or os.path.isdir(own := os.path.expanduser(recipe.config_source)):
        return recipe.config_source
    near = os.path.join(_folder_of(recipe) or "", own)
    return near if os.path.isdir(near) else recipe.config_source


def _open(
    index: int, reference: ModelRef, checkpoint: Checkpoint, split: dict[str, LayerName | None], findings: Findings,
    beside: str | None,
) -> OpenModel:  # fmt: skip
    """Collect what is known of a model. ``split`` keeps names that other models have, too."""
    tensors = {name: InputTensor(index, name, *entry) for name, entry in checkpoint.tensors.items()}
    files = checkpoint.files
    if reference.lora:
        adapter = read_adapter(locate(reference.lora.path, reference.lora.revision, beside))
        files = (*files, adapter.file)
        attach(index, tensors, adapter, checkpoint.config, findings)
    for name in tensors:
        if name not in split:
            split[name] = split_layer(name)
    layer_names = {name: parts for name in tensors if (parts := split[name]) is not None}
    return OpenModel(
        index, reference, checkpoint, files, tensors, layer_names, find_stacks(layer_names.values(), checkpoint.config)
    )


def _check(model: OpenModel) -> Iterator[Problem]:
    """Check a model's config against its tensors."""
    config = model.checkpoint.config or {}
    where = f"{model.checkpoint.folder}/config.json"
    stated, main = config_layers(config), model.stacks.main
    if stated and main is not None and is_named(main) and model.stacks.layers < stated[1]:
        what = f"is {stated[1]}, but the weights hold {model.stacks.layers} layers of {main}"
        remedy = "the checkpoint is incomplete: download it again"
        yield Problem(f"{where}: {'.'.join(stated[0])}", what, remedy)
