"""What a merge does when something goes wrong, and what else can be done with the models of the demo."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import FastmergeError
from . import measured
from .tasks import Dictionaries

TOUR = "tour"
"""The folder in that of the demo where the tour works; it starts anew each time."""

BOOSTED = """\
# Models are named from the folder above; run it there.
merge_method: task_arithmetic
base_model: base
models:
  - {model: red, parameters: {weight: 0.7}}
  - {model: green, parameters: {weight: 0.7}}
  - {model: blue, parameters: {weight: 0.7}}
boost: {beta: 0.2}
dtype: bfloat16
"""


def run_tour(folder: Path, seed: int, say: Callable[[str], None]) -> None:
    """Show resuming within a small budget of memory, verification, boosting and analysis on the models of the demo.

    Every command is run as a process of its own, in ``folder``, and printed with what it prints.

    Raises:
        FastmergeError: a command did not do what the tour tells of it.
    """
    shutil.rmtree(folder / TOUR, ignore_errors=True)
    (folder / TOUR).mkdir()
    (folder / TOUR / "boosted.yml").write_text(BOOSTED)
    step = _Steps(folder, say)

    # With so little memory, the tensors of these small models are not all merged in one go.
    merge = f"merge ties.yml {TOUR}/ties --ram 3MiB --threads 1"
    step("Ctrl-C comes in the middle of a merge. There is no result that looks finished.", merge, 130, interrupt=8)
    step("The same command goes on where it stopped. A small budget of memory changes no bit.", merge)
    step.same(
        "ties/model.safetensors",
        f"{TOUR}/ties/model.safetensors",
        "the merge that was not interrupted",
    )

    step("The result is computed again and compared bit by bit.", f"verify {TOUR}/ties")
    damaged = folder / TOUR / "ties" / "model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1000] ^= 1
    damaged.write_bytes(content)
    step("Now one bit of it is turned over.", f"verify {TOUR}/ties", 1)

    step("Task arithmetic with subspace boosting.", f"merge {TOUR}/boosted.yml {TOUR}/boosted --seed {seed}")
    plain, boosted = (
        measured(folder, name, Dictionaries(seed)).average for name in ("task_arithmetic", f"{TOUR}/boosted")
    )
    say(f"# words translated correctly: {100 * plain:.0f} % without boosting, {100 * boosted:.0f} % with it")

    step(
        "What did the models change, and where do they conflict?",
        f"analyze red green blue --base base --out {TOUR}/analysis",
    )
    say(f"# open {folder / TOUR / 'analysis' / 'report.html'} in a browser")


class _Steps:
    """Runs and prints one command after another."""

    def __init__(self, folder: Path, say: Callable[[str], None]):
        self._folder, self._say, self._number = folder, say, 0

    def __call__(self, about: str, command: str, status: int = 0, interrupt: int | None = None) -> None:
        self._number += 1
        self._say(f"\n# {self._number}. {about}\n$ fastmerge {command}")
        module = ["fastmerge"] if interrupt is None else ["fastmerge.demo.interrupting", str(interrupt)]
        ran = subprocess.run(
            [sys.executable, "-m", *module, *shlex.split(command)], cwd=self._folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._say(ran.stdout.strip())
        if ran.returncode != status:
            raise FastmergeError(f"fastmerge {command}: ended with status {ran.returncode}, not {status}")

    def same(self, one: str, other: str, what: str) -> None:
        """Say that two files have the same bytes."""
        if (self._folder / one).read_bytes() != (self._folder / other).read_bytes():
            raise FastmergeError(f"{other} and {one} differ")
        self._say(f"# its bytes are those of {what}")
