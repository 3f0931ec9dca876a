"""Makes a plan from a recipe: headers and configs are read, everything is checked, every byte gets its place."""

from __future__ import annotations

import contextlib
import gc
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..checkpoint.distributed import METADATA
from ..checkpoint.experts import Naming
from ..checkpoint.layers import layouts
from ..checkpoint.opening import noting_reads
from ..methods import Group, Method, get_method
from ..recipe.parts import place_of_method
from ..recipe.types import Recipe
from ..steps.apply import Copy
from ..steps.driver import solve_without_data
from ..steps.inputs import Inputs
from .checks import check_dtypes, check_models, check_shapes
from .configs import compare_configs
from .digest import digest
from .experts import as_units, with_entries
from .explain import Origin
from .files import Wanted, small_files
from .filters import unmatched
from .findings import Findings
from .layout import Position, Sized, lay_out
from .metadata import kept_aliases
from .mixtures import pair_mixture
from .models import OpenModel, open_models
from .precision import Narrowed, output_dtype, rounded
from .rows import Rows, pair_tensors
from .ties import tied_rows
from .tokens import merge_vocabularies, rows_by_token
from .truncation import truncate_vocabularies
from .trust import read_files
from .types import AsState, Dropped, OutputTensor, Plan, SmallFile, TrainingState
from .values import Values

DEFAULT_SHARD_SIZE = 5 * 10**9
"""Bytes of tensor data per output file, as transformers writes them."""

_NUMBER = re.compile(r"\d+")


@contextlib.contextmanager
def _without_gc() -> Iterator[None]:
    """Pause the garbage collector: it would walk a growing pile of live objects again and again, half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_gc()
def make_plan(
    recipe: Recipe,
    *,
    shard_size: int = DEFAULT_SHARD_SIZE,
    allow_mixed_types: bool = False,
    truncate_embeddings: bool = False,
    copy_tokenizer: bool = True,
    model_card: bool = True,
    strict: bool = False,
    explain: bool = False,
    routers: Callable[[str], bytes | None] | None = None,
    state: AsState | None = None,
) -> Plan:
    """Plan the merge that ``recipe`` describes, from headers and configs alone.

    The bytes of integer and bool tensors are the exception: they are compared, because they can only be copied.

    Args:
        shard_size: bytes of tensor data per output file; a larger tensor gets a file of its own.
        allow_mixed_types: merge models whose configs name different ``model_type`` if their tensors agree.
        truncate_embeddings: cut vocabularies of different sizes to the smallest; token ids are not compared.
        copy_tokenizer: take the files of a tokenizer along.
        model_card: write a ``README.md``.
        strict:     make every note a problem.
        explain:    keep what the recipe says of every tensor, in ``Plan.origins``.
        routers:    the routers of a mixture of experts by name, where hidden states need not be computed again.
        state:      makes the output a checkpoint of torch.distributed.checkpoint. None writes the hub's layout.
    Raises:
        InvalidInput: with every problem that was found, each with its place and remedy.
    """
    with noting_reads() as seen:
        plan, opened = _planned(
            recipe, shard_size, allow_mixed_types, truncate_embeddings, copy_tokenizer, model_card, strict, explain,
            routers, state,
        )  # fmt: skip
    return replace(plan, read=read_files(opened, seen))


def _planned(
    recipe: Recipe, shard_size: int, allow_mixed_types: bool, truncate_embeddings: bool, copy_tokenizer: bool,
    model_card: bool, strict: bool, explain: bool, routers: Callable[[str], bytes | None] | None, state: AsState | None,
) -> tuple[Plan, list[OpenModel]]:  # fmt: skip
    findings = Findings(notes=list(recipe.notes))
    method = get_method(recipe.method)
    if shard_size < 1:
        findings.problem("shard size", f"is {shard_size}, expected at least 1 byte")
    models = open_models(recipe, findings, trains=state is not None)
    check_models(models, allow_mixed_types, findings)
    sliced = any(source.layers for slice_ in recipe.slices for source in slice_.sources)
    compare_configs(list(models.values()), sliced, allow_mixed_types, findings)
    if len(models) < len(recipe.models):
        findings.stop()
    if recipe.mixture is not None:
        findings.stop()
        found = pair_mixture(recipe, models, routers, findings)
        layout = Naming()
    else:
        models, layout = as_units(recipe, models, findings)
        found = pair_tensors(recipe, models, findings)
    found.rows = tied_rows(found.rows)
    vocabulary = merge_vocabularies(recipe, models, findings)
    if vocabulary is not None:
        base = None if recipe.base is None else models[recipe.base]
        found.rows = rows_by_token(found.rows, vocabulary, models, base, findings)
    elif truncate_embeddings:
        found.rows = truncate_vocabularies(found.rows, findings)
    origins: dict[str, Origin] | None = {} if explain else None
    outputs = _decide(recipe, found, models[recipe.models[0]].checkpoint.config, findings, origins)
    outputs = with_entries(outputs, layout, findings)
    files: Mapping[str, SmallFile] = small_files(
        recipe, models, found, outputs, findings, Wanted(copy_tokenizer, model_card, truncate_embeddings), vocabulary
    )
    aliases = kept_aliases(models[recipe.models[0]], [e.name for output in outputs for e in output.stored], findings)
    entries = {
        entry.name: Sized(entry.name, entry.dtype, entry.shape, entry.nbytes, i > 0)
        for o in outputs
        for i, entry in enumerate(o.stored)
    }
    training: TrainingState | None = None
    named: dict[str, tuple[str, ...]] = {}
    if state is not None:
        from .state import as_state  # which reads such checkpoints, too

        training, named, pattern = as_state(
            state, recipe, models[recipe.models[0]], list(entries.values()), aliases, findings
        )
    if strict:
        findings.forbid_notes()
    findings.stop()
    if training is None:
        shards, positions, index = lay_out(list(entries.values()), shard_size, aliases)
    else:
        from .layout_dcp import lay_out_dcp  # with torch, whose own classes describe it

        shards, positions, others = lay_out_dcp(list(entries.values()), shard_size, named, training.aliases, pattern)
        files, index = {**others, **files, METADATA: others[METADATA]}, None
        named |= {} if pattern is None else pattern.identities
    places = dict(zip(entries, positions, strict=True))
    placed = [_placed(output, places[output.stored[0].name]) for output in outputs]
    placed.sort(key=lambda output: (output.shard, output.offset))
    opened = list(models.values())
    semantics = recipe.semantics or method.semantics[0]
    plan = Plan(
        recipe=recipe.text,
        method=recipe.method if recipe.mixture is None else "mixture of experts",
        semantics=semantics,
        given_semantics=recipe.semantics,
        seed=recipe.seed,
        models=tuple(model.record for model in opened),
        outputs=tuple(placed),
        shards=tuple(shards),
        index=index,
        dropped=tuple(_dropped(opened, found, placed)),
        files=files,
        notes=tuple(findings.notes),
        digest=digest(
            placed, shards, [file for model in opened for file in model.files], semantics, recipe.seed, named
        ),
        truncated=truncate_embeddings,
        origins=origins or {},
        recipe_file=os.path.abspath(recipe.path) if os.path.isfile(recipe.path) else None,
        training=training,
    )
    return plan, opened


def _decide(
    recipe: Recipe,
    found: Rows,
    config: Mapping[str, Any] | None,
    findings: Findings,
    origins: dict[str, Origin] | None,
) -> list[OutputTensor]:
    """Decide dtype, values and action of every row; ``origins`` gets what the recipe says of each."""
    methods = {row.members.part.method.name: row.members.part.method for row in found.rows}
    # Only blocks and spectral methods look at it, and it takes 10 us a tensor.
    asked = any(method.uses_layout for method in methods.values())
    layout = layouts((row.name for row in found.rows), config) if asked else {}
    values = Values(findings)
    actions = {name: _Actions(method) for name, method in methods.items()}
    counted = -1 if recipe.integers == "last" else 0
    outputs = []
    narrowed = Narrowed(recipe)
    for row in check_dtypes(check_shapes(found.rows, findings), recipe.integers, findings):
        settings = values.of(row)
        if settings is None:
            continue
        part, dtype = row.members.part, output_dtype(row, recipe)
        inputs, through = rounded(row, recipe, dtype)
        narrowed.look(row, dtype)
        if origins is not None:
            origins[row.name] = Origin.of(row, settings)
        every, models, name = inputs.every, len(inputs.tensors), part.method.name
        shape, place = every[0].shape, layout.get(row.key)
        group = Group(row.key, shape, models, settings, recipe.seed, part.semantics, place)
        nbytes = group.numel * dtype.itemsize
        single = actions[name].copied(group) if dtype.is_floating_point else counted
        if single is not None and every[single].dtype == dtype and every[single].plain and through is None:
            copied = Inputs(None, (every[single],))
            outputs.append(OutputTensor(row.name, dtype, group.shape, 0, 0, nbytes, "copy", copied))
        else:
            outputs.append(OutputTensor(row.name, dtype, group.shape, 0, 0, nbytes, name, inputs, group, through))
    narrowed.report(found.rows, findings)
    for note in unmatched(recipe, (name for row in found.rows for name in row.names)):
        findings.note(note)
    for name, action in actions.items():
        groups = [output.group for output in outputs if output.method == name and output.group is not None]
        for message in (*action.refusals.values(), *(methods[name].refusals(groups) if groups else ())):
            part = next(row.members.part for row in found.rows if row.members.part.method.name == name)
            findings.problem(place_of_method(recipe, part), message)
    return outputs


class _Actions:
    """Asks the method what it does with a tensor, before any data: refuse, copy an input, or compute."""

    def __init__(self, method: Method):
        self._method = method
        self._known: dict[tuple, int | None] = {}
        self.refusals: dict[str, str] = {}

    def copied(self, group: Group) -> int | None:
        """Return the input that is copied as it is (the base counts, first), or None when the method computes."""
        # What a tensor is called decides whether it is a matrix of a layer; in which layer it is does not.
        key = (id(group.values), group.models, group.shape, _NUMBER.sub("", group.name))
        if key not in self._known:
            try:
                step = solve_without_data(self._method, group)
                self._known[key] = step.index if isinstance(step, Copy) else None
            except ValueError as error:
                self._known[key] = None
                # One message for all tensors that are refused for the same reason.
                self.refusals.setdefault(str(error).replace(group.name, ""), str(error))
        return self._known[key]


def _placed(output: OutputTensor, place: Position) -> OutputTensor:
    return OutputTensor(
        output.name, output.dtype, output.shape, place.shard, place.offset + output.skip, output.nbytes,
        output.method, output.inputs, output.group, output.through, output.entries, output.skip,
    )  # fmt: skip


def _dropped(models: Sequence[OpenModel], found: Rows, outputs: Sequence[OutputTensor]) -> list[Dropped]:
    """Account for every input tensor that no output uses."""
    used = {(t.model, t.name) for output in outputs for t in output.inputs.every}
    paired = {(t.model, t.name) for row in found.rows for t in row.inputs.every}
    dropped = []
    for model in models:
        for name in model.tensors:
            key = (model.index, name)
            if key not in used:
                if key in found.dropped:
                    reason = found.dropped[key]
                elif key in paired:
                    reason = "the output is a copy of another input"
                elif not found.stacked:
                    reason = "no part of the recipe takes it from this model"
                elif name in model.outside:
                    reason = "no slice takes its tensors outside the layers from this model"
                else:
                    reason = "no slice uses this layer"
                dropped.append(Dropped(model.index, name, reason))
        dropped += [Dropped(model.index, name, reason) for name, reason in model.checkpoint.left_out.items()]
    return dropped
