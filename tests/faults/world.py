"""The merge that is disturbed: its inputs, its target, the right bytes, and what must hold after any fault."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tiny_merges import make_merge

from .children import EVERY, NONE, Ended, Fault, Machine

# Large tensors are cut into several chunks, and all workers have something to do.
SIZE = {"hidden": 128, "inner": 320, "vocab": 1536, "layers": 1}


class Broken(AssertionError):
    """A promise that does not hold."""


@dataclass(frozen=True)
class Snapshot:
    """The names, times and bytes of a folder's files."""

    files: dict[str, tuple[int, bytes]]

    @classmethod
    def of(cls, folder: Path, times: bool = False) -> Snapshot:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return cls({str(p.relative_to(folder)): (p.stat().st_mtime_ns if times else 0, p.read_bytes()) for p in paths})


class World:
    """Inputs, a target that is absent or holds an older output, and the results that are right."""

    def __init__(self, folder: Path, machine: Machine):
        self.machine = machine
        self.inputs, self.outputs = folder / "inputs", folder / "outputs"
        self.target = self.outputs / "merged"
        self.recipe, self.other = folder / "inputs" / "recipe.yml", folder / "inputs" / "other.yml"
        self._pristine = folder / "pristine"
        self._old = folder / "old"
        machine.run(self._make)
        _warm(self.recipe)
        self.expected, self.old = self._undisturbed(self.recipe), self._undisturbed(self.other)
        self._calls: dict[tuple[int, bool], int] = {}

    def _make(self) -> None:
        merge = make_merge(self.inputs, "ties", shards=2, **SIZE)
        self.recipe.write_text(merge.recipe)
        self.other.write_text(merge.recipe.replace("density: 0.4", "density: 0.7"))
        shutil.copytree(self.inputs, self._pristine)
        self.outputs.mkdir()

    def _undisturbed(self, recipe: Path) -> Snapshot:
        ended = self.merge(recipe=recipe)
        if ended.status:
            raise Broken(f"the undisturbed merge ended with {ended.status}: {ended.text}")
        shutil.rmtree(self._old, ignore_errors=True)
        self.target.rename(self._old)
        return Snapshot.of(self._old)

    def merge(self, fault: Fault = NONE, *flags: str, recipe: Path | None = None, setup=lambda: None) -> Ended:
        """Run the command in a child."""
        return self.machine.run(self.command(*flags, recipe=recipe, setup=setup), fault)

    def command(
        self, *flags: str, recipe: Path | None = None, setup: Callable[[], object] = lambda: None
    ) -> Callable[[], None]:
        """Return a function that runs the command in its process, after ``setup``."""

        def work() -> None:
            from fastmerge.cli import main
            from fastmerge.engine import journal
            from fastmerge.engine.scheduler import Scheduler

            wait = Scheduler._wait
            journal.FLUSH_SECONDS = 0  # journals as often as it can
            Scheduler._wait = lambda self, interval: wait(self, 0.001)  # type: ignore[method-assign]
            setup()
            given = ["merge", recipe or self.recipe, self.target, "--quiet", "--ram", "8MB", "--threads", "3", *flags]
            main([str(argument) for argument in given])

        return work

    def calls(self, kinds: int = EVERY, replace: bool = False) -> int:
        """Return the calls of an undisturbed merge that replaces an older output, or does not."""
        if (kinds, replace) not in self._calls:
            self.prepare(replace)
            self._calls[kinds, replace] = self.merge(Fault(kinds=kinds), *self.flags(replace)).calls
            self.prepare(replace)
        return self._calls[kinds, replace]

    def prepare(self, replace: bool) -> None:
        """Bring inputs and target to the beginning."""
        for folder in (self.inputs, self.outputs):
            shutil.rmtree(folder)
        shutil.copytree(self._pristine, self.inputs)
        self.outputs.mkdir()
        if replace:
            shutil.copytree(self._old, self.target)

    @staticmethod
    def flags(replace: bool) -> tuple[str, ...]:
        return ("--overwrite",) if replace else ()

    def attempt(self, fault: Fault, replace: bool = False, setup: Callable[[], object] = lambda: None) -> str:
        """Run a merge with a fault, then without; check every promise and return how the first ended.

        "the same bytes", "one error" or "killed".
        """
        self.prepare(replace)
        ended = self.merge(fault, *self.flags(replace), setup=setup)
        how = self.outcome(ended)
        self.check(ended, replace)
        self.go_on(replace)
        return how

    def outcome(self, ended: Ended) -> str:
        """Return how a merge ended; Broken for a hang, a traceback, or an end without a word."""
        if ended.status == 0:
            return "the same bytes"
        if ended.status == -signal.SIGKILL:
            return "killed"
        if ended.status < 0:
            raise Broken(f"ended by signal {-ended.status}: {ended.text}")
        if not ended.told:
            raise Broken(f"status {ended.status} without one clear error: {ended.text}")
        return "one error"

    def check(self, ended: Ended, replace: bool, also: Snapshot | None = None) -> None:
        """Check inputs and target after a fault: the old output, the new one (or ``also``), or nothing if it was so."""
        if Snapshot.of(self.inputs, times=True) != Snapshot.of(self._pristine, times=True):
            raise Broken("an input changed")
        found = Snapshot.of(self.target) if self.target.exists() else None
        allowed = [self.expected, also or self.expected]
        if ended.status:
            allowed.append(self.old if replace else None)
        if found not in allowed:
            held = sorted(found.files) if found else "nothing"
            raise Broken(f"the target holds neither the old output nor the new one, but {held}, after: {ended.text}")

    def go_on(self, replace: bool) -> None:
        """Run the merge again, undisturbed: the same bytes come out, and nothing is left beside them."""
        complete = self.target.exists() and Snapshot.of(self.target) == self.expected
        again = self.merge(NONE, *self.flags(replace))
        if again.status and not (complete and "exists and is complete" in again.text):
            raise Broken(f"the next run ended with {again.status}: {again.text}")
        if Snapshot.of(self.target) != self.expected:
            raise Broken("the next run gave other bytes")
        if os.listdir(self.outputs) != [self.target.name]:
            raise Broken(f"left beside the output: {os.listdir(self.outputs)}")


def _warm(recipe: Path) -> None:
    """Import in this process, which starts no thread, what its forks need."""
    from click.testing import CliRunner

    from fastmerge.cli import main

    CliRunner().invoke(main, ["check", str(recipe)])
