"""A plan: everything about a merge that is decided before tensor data moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...results import Result, counted
from ...sizes import show_size
from .inputs import Dropped, InputModel, InputTensor, ReadFile
from .outputs import OutputTensor, Shard, TrainingState
from .small import SmallFile


@dataclass(frozen=True, repr=False)
class Plan(Result):
    """The whole merge. ``outputs`` are ordered by (shard, offset).

    Attributes:
        recipe:   text of the recipe, verbatim.
        method:   merge method of the recipe.
        semantics, seed: as resolved.
        models:   every model that is read.
        outputs:  every tensor that is written.
        shards:   every file of weights that is written.
        index:    text of ``model.safetensors.index.json``; None for a single shard, and for outputs of DCP.
        dropped:  every input tensor that is not used.
        files:    small files of the output by name: config.json, ...
        notes:    what the user should know, one sentence each.
        steps:    the manifests of merges whose results are inputs of this one, by name.
        origins:  what the recipe says of every output, by name (``explain.Origin``); empty unless asked for.
        truncated: True where vocabularies of different sizes were cut to the smallest.
        digest:   hash of everything that decides the output's bytes.
        recipe_file: absolute path of the recipe; None for text.
        given_semantics: as the recipe or its caller has them; None where the method's default was taken.
        read:     every small file that planning read.
        training: for an output of torch.distributed.checkpoint, how it names its tensors.
    """

    recipe: str
    method: str
    semantics: str
    seed: int
    models: tuple[InputModel, ...]
    outputs: tuple[OutputTensor, ...]
    shards: tuple[Shard, ...]
    index: str | None
    dropped: tuple[Dropped, ...]
    files: Mapping[str, SmallFile] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    steps: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, Any] = field(default_factory=dict)
    truncated: bool = False
    digest: str = ""
    recipe_file: str | None = None
    given_semantics: str | None = None
    read: tuple[ReadFile, ...] = ()
    training: TrainingState | None = None

    def __str__(self) -> str:
        return (
            f"{self.method} of {counted(len(self.models), 'model')}: {counted(len(self.outputs), 'tensor')}, "
            f"reads {show_size(self.bytes_read)}, writes {show_size(self.bytes_written)}"
        )

    def facts(self) -> list[tuple[str, str]]:
        copied = sum(output.group is None for output in self.outputs)
        return [
            ("method", f"{self.method} (semantics: {self.semantics}, seed: {self.seed})"),
            *(("model", model.reference) for model in self.models),
            ("tensors", f"{len(self.outputs) - copied} merged, {copied} copied, {len(self.dropped)} left out"),
            ("reads", show_size(self.bytes_read)),
            ("writes", f"{show_size(self.bytes_written)} in {counted(len(self.shards), 'file')}"),
        ]

    @property
    def gathered(self) -> dict[str, InputTensor]:
        """The inputs that no file holds, by the name that stands for their path."""
        every = (tensor for output in self.outputs for tensor in output.inputs.every)
        return {tensor.path: tensor for tensor in every if tensor.gathered is not None}

    @property
    def made(self) -> dict[str, InputTensor]:
        """The inputs whose values come from no file, by the name that stands for their path."""
        every = (tensor for output in self.outputs for tensor in output.inputs.every)
        return {tensor.path: tensor for tensor in every if tensor.made is not None}

    @property
    def bytes_read(self) -> int:
        """Bytes of the inputs, each range counted once."""
        ranges = {
            (part.path, part.offset, part.nbytes)
            for output in self.outputs
            for tensor in output.inputs.every
            if tensor.made is None
            for part in tensor.stored
        }
        return sum(nbytes for _, _, nbytes in ranges)

    @property
    def bytes_written(self) -> int:
        """Bytes of the output shards."""
        return sum(shard.nbytes for shard in self.shards)
