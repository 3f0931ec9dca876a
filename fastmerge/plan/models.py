"""The models of a recipe, opened: headers read, layers found, adapters attached."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..checkpoint import Checkpoint, locate, open_checkpoint
from ..errors import CheckpointError, Problem
from ..recipe.types import ModelRef, Recipe
from .layers import LayerName, Stacks, config_layers, find_stacks, split_layer
from .types import InputFile, InputModel, InputTensor

_HEAD = re.compile(r"(.*\.)?(lm_head|embed_out)\.weight")
_EMBEDDING = re.compile(r"(.*\.)?(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|shared)\.weight")

# Buffers that transformers computes from the config and ignores in checkpoints.
_COMPUTED = re.compile(
    r"(.*\.)?(rotary_emb\.inv_freq|attn\.masked_bias|attention\.masked_bias|attn\.bias|position_ids)"
)


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
        """The tensors of each layer of the main stack, by the name behind the layer's number."""
        found: list[dict[str, InputTensor]] = [{} for _ in range(self.stacks.layers)]
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
        """``tie_word_embeddings`` of the config; None where it does not say."""
        config = self.checkpoint.config or {}
        for level in (config, config.get("text_config")):
            if isinstance(level, dict) and isinstance(level.get("tie_word_embeddings"), bool):
                return level["tie_word_embeddings"]
        return None

    @cached_property
    def embedding(self) -> InputTensor | None:
        """The input embedding, to which an output head may be tied."""
        return next((tensor for name, tensor in self.tensors.items() if _EMBEDDING.fullmatch(name)), None)

    @property
    def record(self) -> InputModel:
        """The model as the plan lists it."""
        return InputModel(str(self.reference), self.checkpoint.folder, self.files)


def is_head(name: str) -> bool:
    """True for the output head, which may be tied to the embedding."""
    return _HEAD.fullmatch(name) is not None


def is_vocabulary(name: str) -> bool:
    """True for tensors with one row per token."""
    return _HEAD.fullmatch(name) is not None or _EMBEDDING.fullmatch(name) is not None


def is_computed(tensor: InputTensor) -> bool:
    """True for a buffer that transformers computes itself, so that no checkpoint needs it."""
    match = _COMPUTED.fullmatch(tensor.name)
    return match is not None and (match[2] != "attn.bias" or len(tensor.shape) == 4)


def open_models(recipe: Recipe, problems: list[Problem]) -> dict[ModelRef, OpenModel]:
    """Open every model that the recipe names. What is wrong with one is added to ``problems``; the others are returned."""
    opened: dict[tuple[str, str | None], Checkpoint] = {}
    models = {}
    for index, reference in enumerate(recipe.models):
        key = (reference.path, reference.revision)
        try:
            if key not in opened:
                opened[key] = open_checkpoint(locate(*key))
            models[reference] = _open(index, reference, opened[key], problems)
        except CheckpointError as error:
            problems.append(Problem(f"{recipe.path}: model {reference}", str(error)))
    return models


def _open(index: int, reference: ModelRef, checkpoint: Checkpoint, problems: list[Problem]) -> OpenModel:
    tensors = {name: InputTensor(index, name, *entry) for name, entry in checkpoint.tensors.items()}
    names = {name: parts for name in tensors if (parts := split_layer(name)) is not None}
    model = OpenModel(index, reference, checkpoint, checkpoint.files, tensors, names, find_stacks(names.values()))
    problems.extend(_check(model))
    return model


def _check(model: OpenModel) -> Sequence[Problem]:
    """Check a model's config against its tensors."""
    config = model.checkpoint.config
    if config is None:
        return []
    where = f"{model.checkpoint.folder}/config.json"
    problems = []
    if config.get("quantization_config"):
        kind = config["quantization_config"].get("quant_method", "unknown method")
        remedy = "use the original checkpoint, or dequantize it to bfloat16 first"
        problems.append(Problem(f"{where}: quantization_config", f"the weights are quantized ({kind})", remedy))
    stated = config_layers(config)
    if stated and model.stacks.main is not None and model.stacks.layers < stated[1]:
        what = f"is {stated[1]}, but the weights hold {model.stacks.layers} layers of {model.stacks.main}"
        problems.append(
            Problem(f"{where}: {'.'.join(stated[0])}", what, "the checkpoint is incomplete: download it again")
        )
    return problems
