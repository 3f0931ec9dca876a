"""Verification of an output: recompute tensors from the inputs and compare bits; check the checksums of the rest."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import Checkpoint
from ..checkpoint.distributed import split_key
from ..errors import CheckpointError, Problem
from ..kernels import limited_threads, use_backend
from ..plan import make_plan
from ..plan.types import AsState, OutputTensor, Plan, TrainingState
from ..progress import Progress
from ..recipe import ModelRef, Recipe
from ..results import Result, counted
from ..sizes import DEFAULT_RAM, parse_size, show_size
from .batches import units
from .censuses import knowing, take_all
from .context import RunContext
from .files import InputFiles
from .gathering import PlannedFiles
from .listed import CARD, changed_files
from .manifest import read_manifest, recipe_of
from .places import misfits, open_output
from .rehash import Rehash
from .report import Meter
from .scheduler import Unit
from .sizing import Budget, divide
from .targets import Host
from .working import default_threads, work


@dataclass(frozen=True, repr=False)
class VerifyReport(Result):
    """What a verification found.

    Attributes:
        tensors:    tensors of the output.
        recomputed: of these, the ones that were computed again from the inputs.
        checked:    the others, whose checksums were compared with the manifest.
        mismatches: what is wrong, each with the file and tensor, and files beside the weights that were changed. Empty
                    when the output is what the manifest says; the model card may have been written on.
        notes:      what the user should know, one sentence each.
        seconds:    wall time.
        bytes_read: of inputs and output.
    """

    tensors: int
    recomputed: int
    checked: int
    mismatches: tuple[Problem, ...]
    notes: tuple[str, ...]
    seconds: float
    bytes_read: int

    @property
    def ok(self) -> bool:
        return not self.mismatches

    def __str__(self) -> str:
        verdict = "every bit is as it should be" if self.ok else f"{counted(len(self.mismatches), 'mismatch')}"
        return f"{verdict}: {self.tensors} tensors, {self.recomputed} computed again, {self.checked} by checksum"

    def facts(self) -> list[tuple[str, str]]:
        found = [("read", show_size(self.bytes_read)), ("time", f"{self.seconds:.2f} s")]
        return found + [(problem.where, problem.what) for problem in self.mismatches]


def verify(
    out: str | Path,
    *,
    manifest: dict[str, Any] | None = None,
    sample: int | None = None,
    backend: str | None = None,
    seed: int = 0,
    ram: int = parse_size(DEFAULT_RAM),
    threads: int | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check the output folder ``out`` against its manifest and its inputs.

    Args:
        manifest:  of the output, if it was read and its inputs lie elsewhere.
        sample:    number of tensors to recompute, chosen at random by ``seed``; None recomputes all. The others are
                   compared with the checksums of the manifest.
        backend, ram, threads: as in ``RunOptions``; any of them gives the same bits.
        progress:  called with the bytes that were checked, and all of them.
    Raises:
        CheckpointError: there is no manifest, or an input is missing or no longer the one of the merge.
        InvalidInput:    the recipe in the manifest cannot be planned any more.
    """
    out = Path(os.path.abspath(out))
    manifest = manifest or read_manifest(out)
    recipe, key = recipe_of(manifest), manifest.get("state_key")
    checkpoint = open_output(str(out), None if key is None else TrainingState(key, recipe.names))
    plan, notes = _replan(recipe, manifest, checkpoint)
    outputs, mismatches = _located(plan, checkpoint, manifest["tensors"])
    for problem in changed_files(out, manifest):
        if problem.where == str(out / CARD):
            notes.append(f"{problem.where} {problem.what}.")
        else:
            mismatches.append(problem)
    chosen = outputs if sample is None else random.Random(seed).sample(outputs, min(sample, len(outputs)))
    names = {output.name for output in chosen}
    again = [output for output in outputs if output.name in names]
    rest = [output for output in outputs if output.name not in names]

    meter = Meter()
    paths = [file.path for file in checkpoint.files]
    with use_backend(backend), limited_threads(threads), PlannedFiles(plan, checkpoint.files) as inputs:
        inputs.open()
        sink = _Comparison(paths, outputs, inputs, manifest)

        def read(shard: int, offset: int, into: memoryview) -> None:
            inputs.read(paths[shard], offset, into)

        def make_units(context: RunContext) -> Iterator[Unit]:
            yield from units(context, [knowing(output, found) for output in again])
            yield from (Rehash(context, output, read) for output in rest)

        total = sum(output.nbytes for output in (*again, *rest))
        sizes = divide(plan.outputs, Budget(ram), threads or default_threads())

        def tick() -> None:
            if progress is not None:
                progress(sink.done, total)

        host = Host()
        strips = not again or host.why_torch(plan.outputs) is None
        found = take_all(plan.outputs, host, sizes, inputs, meter, tick, strips) if again else {}
        work(make_units, host, sizes, inputs, sink, meter, tick, strips=strips)
    if progress is not None:
        progress(total, total)
    report = meter.report(len(outputs), 0, sizes.workers)
    return VerifyReport(
        tensors=len(plan.outputs),
        recomputed=len(again),
        checked=len(rest),
        mismatches=(*mismatches, *sink.mismatches()),
        notes=tuple(notes),
        seconds=report.seconds,
        bytes_read=report.bytes_read + report.bytes_written,
    )


class _Comparison:
    """A sink that compares results with what lies in the output files, and checksums with the manifest's."""

    def __init__(
        self, paths: Sequence[str], outputs: Sequence[OutputTensor], inputs: InputFiles, manifest: dict[str, Any]
    ):
        self._paths, self._outputs, self._inputs = paths, outputs, inputs
        self._checksums, self._sources = manifest["tensors"], manifest.get("sources", {})
        self._starts = np.array([(output.shard << 48) + output.offset for output in outputs])
        self._lock = threading.Lock()
        self._differing: dict[int, list[int]] = {}
        self._unexpected: set[str] = set()
        self._swapped: dict[tuple[str, str], None] = {}
        self.done = 0

    def write(self, output: OutputTensor, offset: int, data: memoryview, address: int) -> None:
        found = np.empty(len(data), np.uint8)
        self._inputs.read(self._paths[output.shard], offset, found.data)
        expected = np.frombuffer(data, np.uint8)
        if np.array_equal(expected, found):
            return
        places = (output.shard << 48) + offset + np.flatnonzero(expected != found)
        owners = np.searchsorted(self._starts, places, side="right") - 1
        with self._lock:
            for owner in np.unique(owners):
                wrong = places[owners == owner] - self._starts[owner]
                count, first = self._differing.get(int(owner), [0, int(wrong[0])])
                self._differing[int(owner)] = [count + len(wrong), min(first, int(wrong[0]))]

    def finish(self, output: OutputTensor, checksum: str, inputs: Sequence[str] = ()) -> None:
        # What is copied has the checksum of the copy; a tensor that is only read back has no inputs here.
        was = self._sources.get(output.name, inputs if output.group else [self._checksums[output.name]])
        parts = [(part.path, tensor.name) for tensor in output.inputs.every for part in tensor.summed]
        with self._lock:
            self.done += output.nbytes
            if checksum != self._checksums[output.name]:
                self._unexpected.add(output.name)
            for part, before, now in zip(parts, was, inputs, strict=False):
                if now and before and now != before and output.nbytes:
                    self._swapped[part] = None

    def mismatches(self) -> Iterator[Problem]:
        """Yield what was found: first inputs, then outputs in their order."""
        for path, name in sorted(self._swapped):
            yield Problem(f"{path}: {name}", "this input is not what was merged: its values changed", "restore it")
        for i, output in enumerate(self._outputs):
            where = f"{self._paths[output.shard]}: {output.name}"
            if i in self._differing:
                count, first = self._differing[i]
                element = first // output.dtype.itemsize
                differ = "1 byte differs" if count == 1 else f"{count} bytes differ"
                yield Problem(where, f"{differ} from the recomputed tensor, the first in element {element}")
            elif output.name in self._unexpected:
                yield Problem(where, "the checksum is not the one in the manifest")


def _replan(recipe: Recipe, manifest: dict[str, Any], checkpoint: Checkpoint) -> tuple[Plan, list[str]]:
    """Plan the merge of a manifest again, from the very folders that it names, and compare the inputs."""
    # The recipe may say it from another directory.
    source = next((item["config_source"] for item in manifest["inputs"] if "config_source" in item), None)
    recipe = replace(recipe, config_source=source or recipe.config_source)
    folders = {item["reference"]: item["folder"] for item in manifest["inputs"]}
    for folder in folders.values():
        if not os.path.exists(split_key(folder)[0]):
            raise CheckpointError(
                f"{folder}: an input of the merge is missing; its output cannot be verified without it"
            )
    key = manifest.get("state_key")
    plan = make_plan(
        _relocated(recipe, folders), allow_mixed_types=True, truncate_embeddings=manifest.get("truncated", False),
        routers=_Stored(checkpoint), state=None if key is None else AsState(key),
    )  # fmt: skip
    recorded = [file for item in manifest["inputs"] for file in item["files"]]
    present = [file for model in plan.models for file in model.files]
    if len(recorded) != len(present):
        raise CheckpointError(f"the inputs have {len(present)} weight files now; the merge read {len(recorded)}")
    notes = []
    for was, file in zip(recorded, present, strict=True):
        if (was["bytes"], was["header"]) != (file.nbytes, file.header_digest):
            raise CheckpointError(
                f"{file.path}: is not the file that was merged (its size or header changed); restore it to verify"
            )
        if was["mtime_ns"] != file.mtime_ns:
            notes.append(f"{file.path} was written again after the merge.")
    before = {(item["model"], item["name"]): item.get("xxh3") for item in manifest.get("read", ())}
    for small in plan.read:
        if before.get((small.model, small.name), small.xxh3) != small.xxh3:
            notes.append(f"{small.path} is no longer what the merge read.")
    return plan, notes


class _Stored:
    """The tensors of an output as they are stored. Routers that a model was run for are checked by their checksums."""

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint

    def __call__(self, name: str) -> bytes | None:
        entry = self._checkpoint.tensors.get(name)
        if entry is None:
            return None
        with open(entry.path, "rb") as file:
            file.seek(entry.offset)
            return file.read(entry.nbytes)


def _relocated(recipe: Recipe, folders: dict[str, str]) -> Recipe:
    """Point the references of a recipe to the folders that the merge read, wherever this process runs."""
    # By reference, because a recipe may spell one folder in several ways.
    known = {ref: folders[str(ref)] for ref in recipe.models if str(ref) in folders}

    def moved(ref: ModelRef) -> ModelRef:
        return replace(ref, path=known[ref], revision=None) if ref in known else ref

    return recipe.with_models(moved)


def _located(plan: Plan, checkpoint: Checkpoint, checksums: dict[str, str]) -> tuple[list[OutputTensor], list[Problem]]:
    """Return the planned outputs at their places in the files that are there, and what does not fit the plan."""
    shards = {file.path: i for i, file in enumerate(checkpoint.files)}
    located, problems = [], []
    planned = {entry.name for output in plan.outputs for entry in output.stored}
    planned |= set() if plan.training is None else plan.training.aliases.keys()
    for name in [name for name in checkpoint.tensors if name not in planned]:
        problems.append(Problem(f"{checkpoint.tensors[name].path}: {name}", "is no tensor of this merge"))
    for output in plan.outputs:
        wrong = next(misfits(output, checkpoint), None)
        if wrong is None and output.name not in checksums:
            wrong = Problem(f"{checkpoint.folder}: {output.name}", "is missing")
        if wrong is not None:
            problems.append(wrong)
        else:
            first = checkpoint.tensors[output.stored[0].name]
            located.append(replace(output, shard=shards[first.path], offset=first.offset + output.skip))
    return sorted(located, key=lambda output: (output.shard, output.offset)), list(dict.fromkeys(problems))
