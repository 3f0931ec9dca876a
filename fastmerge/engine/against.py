"""Verification of any tool's output: the merge of a recipe is computed again, and every tensor judged by its values."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoint import Checkpoint, TensorEntry, open_checkpoint
from ..checkpoint.layers import says_tied
from ..dtypes import ALL, DType
from ..kernels import GRID, limited_threads, use_backend
from ..methods import get_method
from ..plan import make_plan
from ..plan.models import MERGED, is_head
from ..plan.types import OutputTensor, Plan
from ..progress import Progress
from ..recipe import Recipe
from ..results import Result
from ..sizes import DEFAULT_RAM, parse_size
from ..steps.inputs import Inputs
from .batches import units
from .censuses import knowing, take_all
from .files import InputFiles
from .gathering import PlannedFiles
from .judging import Choices, Tolerance
from .places import place_of, under_names_of
from .reading import Folded
from .report import Meter
from .sizing import Budget, divide
from .targets import Host
from .working import default_threads, work

__all__ = ["EQUAL", "Judged", "RecipeReport", "verify_recipe"]

EQUAL, ROUNDING, DIFFERENT, UNDECIDED = "equal", "within rounding", "different", "undecided"


@dataclass(frozen=True)
class Judged:
    """One tensor of the output.

    Attributes:
        name:    of the tensor.
        verdict: "equal", "within rounding", "different" or "undecided".
        detail:  what differs, and why a verdict is open; "" for equal tensors.
    """

    name: str
    verdict: str
    detail: str = ""


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
        return next((v for v in (DIFFERENT, UNDECIDED, ROUNDING) if v in found), EQUAL)

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
    plan = make_plan(replace(recipe, out_dtype="float32"), allow_mixed_types=True)
    checkpoint = under_names_of(plan, checkpoint)
    outputs, judged = _pair(plan, checkpoint)
    meter = Meter()
    with use_backend(backend), limited_threads(threads), PlannedFiles(plan, checkpoint.files) as inputs:
        inputs.open()
        places = {output.name: entry for output in outputs if (entry := place_of(output, checkpoint))}
        sink = _Judge(outputs, places, inputs, ALL[recipe.dtype] if recipe.dtype else None)
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
    return RecipeReport((*judged, *sink.judged.values()), plan.notes, seconds)


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


class _Judge:
    """A sink that compares results with what lies in the files of the output."""

    def __init__(
        self,
        outputs: Sequence[OutputTensor],
        entries: dict[str, TensorEntry],
        inputs: InputFiles,
        arithmetic: DType | None,
    ):
        self._outputs = {output.name: output for output in outputs}
        self._entries, self._inputs, self._arithmetic = entries, inputs, arithmetic
        self._open: dict[str, _Open] = {}
        self._lock = threading.Lock()
        self.judged: dict[str, Judged] = {}
        self.done = 0

    def write(self, output: OutputTensor, offset: int, data: memoryview, address: int) -> None:
        with self._lock:
            own = self._open.setdefault(output.name, _Open(output, self._entries[output.name], self._arithmetic))
        size = output.dtype.itemsize
        for start in range(0, len(data), GRID * size):
            own.compare((offset + start) // size, data[start : start + GRID * size], self._inputs, self._lock)

    def finish(self, output: OutputTensor, checksum: str, inputs: Sequence[str] = ()) -> None:
        with self._lock:
            self.done += output.nbytes
            own = self._open.pop(output.name, None)
            self.judged[output.name] = own.verdict() if own else Judged(output.name, EQUAL)


class _Open:
    """One tensor that is being compared."""

    def __init__(self, output: OutputTensor, entry: TensorEntry, arithmetic: DType | None):
        self._output, self._entry = output, entry
        self._dtype = arithmetic or min((t.dtype for t in output.inputs.every), key=lambda dtype: dtype.itemsize)
        values = output.group.values if output.group else {}
        models = len(output.inputs.tensors)
        measured = entry.dtype in MERGED
        self._tolerance = Tolerance.of(values, models, self._dtype.torch, entry.dtype.torch) if measured else None
        self._random = output.group is not None and get_method(output.method).random
        self._chooses = output.inputs.base is not None and "density" in values
        self._choices = Choices(self._tolerance.arithmetic if self._tolerance else 0.0)
        self._folded: Inputs[Folded] | None = None
        self._unequal = self._beyond = 0
        self._largest = 0.0

    def compare(self, start: int, data: memoryview, inputs: InputFiles, lock: threading.Lock) -> None:
        """Compare one part of the tensor, from an element on."""
        import torch

        merged = torch.frombuffer(bytearray(data), dtype=self._output.dtype.torch)
        found = torch.empty(len(merged), dtype=self._entry.dtype.torch)
        inputs.read(self._entry.path, self._entry.offset + start * found.itemsize, found.view(torch.uint8).numpy().data)
        same = found == merged.to(found.dtype)
        if found.is_floating_point():
            same |= found.isnan() & merged.isnan()
        if bool(same.all()):
            return
        beyond, difference = ~same, 0.0
        if self._tolerance is not None:
            with lock:
                if self._folded is None:
                    self._folded = self._output.inputs.map(lambda tensor: Folded(tensor, inputs))
            values = self._folded.map(lambda folded: folded.elements(start, start + len(merged)))
            beyond = ~self._tolerance.allows(found, merged, values)
            difference = float((found.float() - merged).abs().max())
            if self._chooses and bool(beyond.any()):
                hanging = self._tolerance.deltas(values.map(lambda tensor: tensor[beyond]), self._dtype.torch)
                with lock:
                    self._choices.add(*hanging)
        with lock:
            self._unequal += int((~same).count_nonzero())
            self._beyond += int(beyond.count_nonzero())
            self._largest = max(self._largest, difference)

    def verdict(self) -> Judged:
        name, numel = self._output.name, max(1, self._output.nbytes // self._output.dtype.itemsize)
        if not self._unequal:
            return Judged(name, EQUAL)
        share = f"{self._unequal} of {numel} elements differ, by at most {self._largest:.3g}"
        if not self._beyond:
            return Judged(name, ROUNDING, share)
        if self._random:
            return Judged(name, UNDECIDED, f"{share}; {self._output.method} draws other random numbers in every tool")
        if self._chooses and self._choices.explain():
            chosen = f"{self._beyond} of them hang on equal magnitudes or on deltas that cancel"
            return Judged(name, ROUNDING, f"{share}; {chosen}")
        return Judged(name, DIFFERENT, f"{share}; {self._beyond} of them by more than rounding explains")
