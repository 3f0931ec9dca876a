"""Verification of any tool's output: the merge of a recipe is computed again, and every tensor judged by its values."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoint import Checkpoint, TensorEntry, open_checkpoint
from ..checkpoint.layers import says_tied
from ..dtypes import ALL
from ..kernels import limited_threads, use_backend
from ..plan import make_plan
from ..plan.models import MERGED, is_head
from ..plan.types import OutputTensor, Plan
from ..progress import Progress
from ..recipe import Recipe
from ..results import Result
from ..sizes import DEFAULT_RAM, parse_size
from .batches import units
from .censuses import knowing, take_all
from .gathering import PlannedFiles
from .judged import DIFFERENT, EQUAL, UNDECIDED, VERDICTS, Judge, Judged
from .places import place_of, under_names_of
from .report import Meter
from .sizing import Budget, divide
from .targets import Host
from .working import default_threads, work

__all__ = ["EQUAL", "Judged", "RecipeReport", "verify_recipe"]


@dataclass(frozen=True, repr=False)
class RecipeReport(Result):
    """What a verification against a recipe found.

    Attributes:
        tensors: every tensor of the merge and of the output.
        notes:   what the user should know, one sentence each.
        seconds: wall time.
    """

    tensors: tuple[Judged, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def verdict(self) -> str:
        """The worst verdict: different, undecided, within rounding, equal."""
        found = {item.verdict for item in self.tensors}
        return max(found, key=VERDICTS.index, default=EQUAL)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {verdict}" for verdict, count in self.counts.items())
        return f"{self.verdict}: {counts or 'no tensors'}"

    def facts(self) -> list[tuple[str, str]]:
        found = [("time", f"{self.seconds:.2f} s")]
        return found + [(item.name, f"{item.verdict}: {item.detail}") for item in self.tensors if item.verdict != EQUAL]

    @property
    def counts(self) -> dict[str, int]:
        """Tensors by verdict."""
        return dict(Counter(item.verdict for item in self.tensors))


def verify_recipe(
    recipe: Recipe,
    out: str | Path,
    *,
    backend: str | None = None,
    ram: int = parse_size(DEFAULT_RAM),
    threads: int | None = None,
    progress: Progress | None = None,
) -> RecipeReport:
    """Compute the merge of ``recipe`` and judge every tensor of the folder ``out``, whichever tool wrote it.

    A tensor is equal where the merge in float32, rounded to the file's dtype, has its bits. What another tool rounds on
    its way is allowed for (``judging``). Random methods draw other numbers in every tool: what is not equal there is
    undecided.

    Args:
        backend, ram, threads: as in ``RunOptions``.
        progress: called with the bytes that were computed, and all of them.
    Raises:
        InvalidInput:    the recipe cannot be planned.
        CheckpointError: the output cannot be read.
    """
    checkpoint = open_checkpoint(os.path.abspath(out))
    judged: dict[str, Judged] = {}
    notes: tuple[str, ...] = ()
    seconds = 0.0
    with use_backend(backend), limited_threads(threads):
        for plan in _readings(recipe):
            again = {name for name, item in judged.items() if item.verdict != EQUAL} if judged else None
            if again is not None and not _rounds(plan, again):
                break
            notes = notes or plan.notes
            found, spent = _judged(plan, checkpoint, again, recipe.dtype, ram, threads, progress)
            for name, item in found.items():
                judged[name] = min(judged.get(name, item), item, key=lambda one: VERDICTS.index(one.verdict))
            seconds += spent
    return RecipeReport(tuple(judged.values()), notes, seconds)


def _rounds(plan: Plan, names: Collection[str]) -> bool:
    """True where inputs of these outputs are rounded before they are merged."""
    return any(tensor.rounded for output in plan.outputs if output.name in names for tensor in output.inputs.every)


def _readings(recipe: Recipe) -> Iterator[Plan]:
    """Yield the plans with results in float32. ``dtype`` alone is that of the result; mergekit rounds inputs to it."""
    if recipe.dtype and not recipe.out_dtype:
        yield make_plan(replace(recipe, dtype="float32"), allow_mixed_types=True)
    yield make_plan(replace(recipe, out_dtype="float32"), allow_mixed_types=True)


def _judged(
    plan: Plan,
    checkpoint: Checkpoint,
    only: Collection[str] | None,
    dtype: str | None,
    ram: int,
    threads: int | None,
    progress: Progress | None,
) -> tuple[dict[str, Judged], float]:
    """Return the verdicts on an output's tensors (None: all) by name, beside one plan, and the seconds."""
    checkpoint = under_names_of(plan, checkpoint)
    outputs, judged = _pair(plan, checkpoint)
    outputs = [output for output in outputs if only is None or output.name in only]
    meter = Meter()
    with PlannedFiles(plan, checkpoint.files) as inputs:
        inputs.open()
        places = {output.name: entry for output in outputs if (entry := place_of(output, checkpoint))}
        sink = Judge(outputs, places, inputs, ALL[dtype] if dtype else None)
        total = sum(output.nbytes for output in outputs)
        sizes, host = divide(outputs, Budget(ram), threads or default_threads()), Host()

        def tick() -> None:
            if progress is not None:
                progress(sink.done, total)

        # Of the whole merge, also of what the output lacks.
        found = take_all(plan.outputs, host, sizes, inputs, meter, tick, strips=False)
        merged = [knowing(output, found) for output in outputs]
        work(lambda context: units(context, merged), host, sizes, inputs, sink, meter, tick)
    if progress is not None:
        progress(total, total)
    seconds = meter.report(len(outputs), 0, sizes.workers).seconds
    return {item.name: item for item in (*judged, *sink.judged.values())}, seconds


_TIED = "the config ties it to the embedding"


def _is_tied(name: str, checkpoint: Checkpoint) -> bool:
    return is_head(name) and says_tied(checkpoint.config) is True


def _pair(plan: Plan, checkpoint: Checkpoint) -> tuple[list[OutputTensor], list[Judged]]:
    """Return the outputs that can be compared, each as a file of its own, and the verdicts on what cannot."""
    outputs: list[OutputTensor] = []
    judged: list[Judged] = []
    planned = {name for output in plan.outputs for name in (output.name, *(entry.name for entry in output.stored))}
    reasons = {item.name: item.reason for item in plan.dropped}
    for name in checkpoint.tensors:
        if name not in planned:
            # What the merge leaves out on purpose, another tool may keep: buffers, heads that are tied.
            why = _TIED if _is_tied(name, checkpoint) else reasons.get(name)
            verdict = DIFFERENT if why is None else UNDECIDED
            judged.append(Judged(name, verdict, f"is not in the merge: {why or 'no input has it'}"))
    for output in plan.outputs:
        name, entry = output.name, place_of(output, checkpoint)
        if entry is None:
            tied = _is_tied(name, checkpoint)
            detail = f"is missing; {_TIED}" if tied else "is missing"
            judged.append(Judged(name, UNDECIDED if tied else DIFFERENT, detail))
        elif entry.shape != output.shape:
            judged.append(Judged(name, DIFFERENT, f"has shape {list(entry.shape)}, the merge {list(output.shape)}"))
        elif (entry.dtype in MERGED) != (output.dtype in MERGED) or (
            entry.dtype not in MERGED and _other(entry, output)
        ):
            judged.append(Judged(name, DIFFERENT, f"is {entry.dtype}, the merge gives {output.dtype}"))
        else:
            outputs.append(replace(output, shard=len(outputs), offset=0))
    return outputs, judged


def _other(entry: TensorEntry, output: OutputTensor) -> bool:
    return entry.dtype != output.dtype
