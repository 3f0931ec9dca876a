"""Checks that layers of several models can lie in one stack, which one config must describe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..checkpoint.layers import belongs_before_layers, stack_layers
from .findings import Findings, listed
from .models import OpenModel, has_token_rows, is_computed, is_head
from .slices import OpenSlice
from .types import InputTensor


def check_stack(slices: Sequence[OpenSlice], findings: Findings, by_token: bool) -> None:
    """Compare the layers of every slice with those of the first model, whose config the output has.

    A tensor that has one shape in all layers of the first model has it in the output, too, and each layer holds the
    tensors of some layer of the first model. What follows the layers fits what lies before them.

    Args:
        by_token: the recipe has a tokenizer, so that heads and embeddings get the rows of its tokens.
    """
    donor = next(iter(slices[0].models.values()))
    if _rearranged(slices) and (donor.checkpoint.config or {}).get("hidden_size_per_layer_input"):
        what = "has an embedding with columns for each layer (hidden_size_per_layer_input)"
        findings.problem(donor.checkpoint.folder, what, "slices cannot cut it: merge whole models")
    if _rearranged(slices) and any("shared_transf" in rest for layer in donor.layers for rest in layer):
        what = "shares a block between its layers, with parts for each place that uses it"
        findings.problem(donor.checkpoint.folder, what, "slices cannot cut it: merge whole models")
    stacked = donor.layers[: donor.stacks.layers]
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for layer in stacked:
        for rest, tensor in layer.items():
            shapes.setdefault(rest, set()).add(tensor.shape)
    kinds = {_kind(layer) for layer in stacked}
    taken: dict[int, list[Mapping[str, InputTensor]]] = {}
    models = {}
    for part in slices:
        key, model = next(iter(part.models.items()))
        models[model.index] = model
        taken.setdefault(model.index, []).extend(model.layers[part.starts[key] : part.starts[key] + part.length])
    for index, layers in taken.items():
        model = models[index]
        if model is donor:
            continue
        wrong = [t for layer in layers for rest, t in layer.items() if _differs(shapes.get(rest, set()), t)]
        if wrong:
            _report_shape(model, donor, wrong, shapes, findings)
            return
        if strange := [layer for layer in layers if _kind(layer) not in kinds]:
            names = sorted(t.name for t in strange[0].values())
            what = f"{len(strange)} of its layers hold other tensors than any layer of {donor}: {listed(names, 3)}"
            findings.problem(model.checkpoint.folder, what, "stack layers of models of one architecture")
    _check_end(slices, donor, findings, by_token)
    for part in slices:
        for note in _other_kinds(part):
            findings.note(note)


def _other_kinds(part: OpenSlice) -> Iterator[str]:
    """Yield a note for each setting by which the configs tell kinds of layers, where a slice merges two of them."""
    (key, first), *others = part.models.items()
    for setting, kinds in _kinds_of_layers(first):
        for other, model in others:
            theirs = dict(_kinds_of_layers(model)).get(setting, [])
            for i in range(part.length if theirs else 0):
                here, there = part.starts[key] + i, part.starts[other] + i
                if kinds[here] != theirs[there]:
                    yield (
                        f"layers of different {setting} are merged: layer {here} of {first} is {kinds[here]!r}, "
                        f"layer {there} of {model} is {theirs[there]!r}"
                    )
                    break


def _kinds_of_layers(model: OpenModel) -> Iterator[tuple[str, list[str]]]:
    """Yield the lists of a config that name the kind of every layer."""
    config: Any = model.checkpoint.config or {}
    place = stack_layers(config, model.stacks.main or "")
    for key in place[0][:-1] if place else ():
        config = config[key]
    for key, value in config.items():
        if isinstance(value, list) and len(value) == model.stacks.layers and all(isinstance(v, str) for v in value):
            yield key, value


def misplaced_layers(slices: Sequence[tuple[OpenModel, int, int]]) -> Iterator[int]:
    """Yield the numbers of layers of the output whose tensors are not those that the first model has in that place.

    ``slices`` are models with their first layer and the number of layers.
    """
    donor = slices[0][0]
    origins = [(model, start + i) for model, start, length in slices for i in range(length)]
    for i, (model, source) in enumerate(origins[: donor.stacks.layers]):
        if _kind(model.layers[source]) != _kind(donor.layers[i]):
            yield i


def _rearranged(slices: Sequence[OpenSlice]) -> bool:
    sources = [start + i for part in slices for start in [next(iter(part.starts.values()))] for i in range(part.length)]
    return sources != list(range(next(iter(slices[0].models.values())).stacks.layers))


def _kind(layer: Mapping[str, InputTensor]) -> frozenset[str]:
    return frozenset(rest for rest, tensor in layer.items() if not is_computed(tensor))


def _differs(shapes: set[tuple[int, ...]], tensor: InputTensor) -> bool:
    """True for another shape than the first model's; one that has several has a config that says so, layer by layer."""
    return len(shapes) == 1 and tensor.shape not in shapes and not is_computed(tensor)


def _report_shape(
    model: OpenModel,
    donor: OpenModel,
    wrong: Sequence[InputTensor],
    shapes: Mapping[str, set[tuple[int, ...]]],
    findings: Findings,
) -> None:
    tensor = wrong[0]
    (expected,) = shapes[model.layer_names[tensor.name].rest]
    what = f"shape {list(tensor.shape)}, but {list(expected)} in {donor}, in whose stack it would lie"
    if len(wrong) > 1:
        what += f", and {len(wrong) - 1} more tensors disagree"
    findings.problem(f"{model.checkpoint.folder}: {tensor.name}", what, "stack layers of models of one size")


def _check_end(slices: Sequence[OpenSlice], donor: OpenModel, findings: Findings, by_token: bool) -> None:
    """Check norm and head, which the last slice gives, against the model that gives the embedding."""
    last = next(iter(slices[-1].models.values()))
    if last.index == donor.index:
        return
    for name, tensor in last.outside.items():
        if belongs_before_layers(name):
            continue
        other = donor.outside.get(name)
        if other is None and is_head(name):
            other = donor.embedding
        if other is None or other.shape == tensor.shape or is_computed(tensor):
            continue
        what, remedy = f"shape {list(tensor.shape)}, but {list(other.shape)} in {donor}", "stack layers of one size"
        if has_token_rows(name) and other.shape[1:] == tensor.shape[1:]:
            if by_token:
                continue
            remedy = "write tokenizer_source: base or union into the recipe, so that both have the same tokens"
        findings.problem(f"{last.checkpoint.folder}: {name}", f"{what}, which gives the embedding", remedy)
        return
