"""The models of an analysis, opened and paired with their base, tensor by tensor."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..checkpoint import InputFile
from ..checkpoint.layers import find_stacks, split_layer
from ..errors import InvalidInput, Problem
from ..methods import PROJECTIONS
from ..plan import make_plan
from ..plan.types import InputTensor, OutputTensor
from ..recipe import load

__all__ = ["Family", "Matched", "labels_of", "open_family", "places_of"]


@dataclass(frozen=True)
class Matched:
    """A float tensor of the base and its namesakes in the models.

    Attributes:
        name:   in the base.
        layer:  its number in the main stack of layers; None for what lies outside.
        module: its name in the layer, without ``.weight``; numbers in it (experts) are replaced by ``*``.
        base, models: where the tensors lie.
    """

    name: str
    layer: int | None
    module: str
    base: InputTensor
    models: tuple[InputTensor, ...]

    @property
    def group(self) -> list[InputTensor]:
        return [self.base, *self.models]

    @property
    def is_matrix(self) -> bool:
        """True for an attention or MLP projection in a layer."""
        return self.layer is not None and len(self.base.shape) == 2 and self.module.rpartition(".")[2] in PROJECTIONS


@dataclass(frozen=True)
class Family:
    """A base and models of its shape.

    Attributes:
        base:    as given.
        models:  as given.
        labels:  short names of the models for pictures, each different.
        tensors: in the order of the base's files.
        files:   everything that is read.
        layers:  of the main stack.
        notes:   what is to be known of the models, one sentence each.
        training: keys of a recipe of them that are of checkpoints of training.
    """

    base: str
    models: tuple[str, ...]
    labels: tuple[str, ...]
    tensors: tuple[Matched, ...]
    files: tuple[InputFile, ...]
    layers: int
    notes: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def matrices(self) -> list[Matched]:
        return [tensor for tensor in self.tensors if tensor.is_matrix]


def open_family(base: str, models: Sequence[str], training: Mapping[str, Any] | None = None) -> Family:
    """Open and check all models, as for a merge on ``base``; only headers are read.

    ``training`` has the keys of a recipe of them that are of checkpoints of training.

    Raises:
        InvalidInput: models do not match the base or cannot be opened; all problems are named.
    """
    if not models:
        raise InvalidInput([Problem("analyze", "there are no models", "name the models to compare with the base")])
    twice = [name for name, count in Counter((base, *models)).items() if count > 1]
    if twice:
        what = "is given twice, among the models or as base and model"
        raise InvalidInput([Problem(f"analyze: model {name}", what, "name it once") for name in twice])
    # The plan of a merge pairs the tensors and finds whatever keeps them from being compared.
    recipe = load(
        {
            "merge_method": "task_arithmetic",
            "base_model": base,
            "models": [{"model": model} for model in models],
            "parameters": {"weight": 1.0},
            **(training or {}),
        }
    )
    # Nobody wrote the recipe: there are no lines to name.
    plan = make_plan(replace(recipe, path="analyze", text=""))
    outputs = [output for output in plan.outputs if output.inputs.base is not None and output.nbytes]
    places, layers = places_of(output.name for output in outputs)
    tensors = [_matched(output, *places[output.name]) for output in outputs]
    # Models under several keys of a checkpoint of training have a file in common, each with its own tensors there.
    each = {(file.path, tuple(t.start for t in file.joined)): file for model in plan.models for file in model.files}
    files = tuple(each.values())
    return Family(base, tuple(models), labels_of(models), tuple(tensors), files, layers, plan.notes, training or {})


def _matched(output: OutputTensor, layer: int | None, module: str) -> Matched:
    assert output.inputs.base is not None
    return Matched(output.name, layer, module, output.inputs.base, output.inputs.tensors)


def places_of(names: Iterable[str]) -> tuple[dict[str, tuple[int | None, str]], int]:
    """Return layer and module (as in ``Matched``) of every tensor, and how many layers the main stack has."""
    parts = {name: split_layer(name) for name in names}
    stacks = find_stacks(part for part in parts.values() if part is not None)
    places: dict[str, tuple[int | None, str]] = {}
    for name, part in parts.items():
        inside = part is not None and part.stack == stacks.main
        layer, module = (part.index, part.rest) if part is not None and inside else (None, name)
        places[name] = layer, re.sub(r"(?<=\.)\d+(?=\.)", "*", module.removesuffix(".weight"))
    return places, stacks.layers


def labels_of(models: Sequence[str]) -> tuple[str, ...]:
    """Return the last parts of the paths; whole paths where those are not different."""
    short = tuple(os.path.basename(os.path.normpath(model)) for model in models)
    return short if len(set(short)) == len(short) else tuple(models)
