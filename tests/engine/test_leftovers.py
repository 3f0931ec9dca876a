"""What a run leaves: nothing when it was refused, what is finished when it can go on, and never without a word."""

from __future__ import annotations

import os
import re
import shutil
import threading

import pytest
from tiny_merges import Merge, make_merge, same_files

from fastmerge.engine import RunOptions, run, scheduler
from fastmerge.engine.checksums import BLOCK
from fastmerge.engine.files import InputFiles, OutputFiles
from fastmerge.engine.folders import appearing
from fastmerge.engine.leftovers import leftovers_in, leftovers_of, remove
from fastmerge.errors import CheckpointError, InputChanged, OutputError, Refused

# Budgets here are those of the compiled kernels.
pytestmark = pytest.mark.compiled

# Many small writes, in order.
SLICED = RunOptions(chunk=BLOCK, threads=1, ram=3 << 20)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_merge(tmp_path_factory.mktemp("models"), "linear", hidden=256, inner=640, vocab=768, layers=2)


@pytest.fixture
def merge(models, tmp_path):
    return Merge(models.recipe, tmp_path / "out")


def stop(merge, monkeypatch, error, after=12):
    """Run the merge until so many writes are done, and return what it raises then."""
    write, left = OutputFiles.write, iter(range(after))

    def failing(self, *args):
        if next(left, None) is None:
            raise error
        return write(self, *args)

    with monkeypatch.context() as patch, pytest.raises(type(error)) as caught:
        patch.setattr(OutputFiles, "write", failing)
        run(merge.plan(), merge.out, SLICED)
    return str(caught.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OutputError("full"), CheckpointError("unreadable")])
def test_a_merge_that_can_go_on_says_what_it_left(merge, monkeypatch, error):
    run(merge.plan(), merge.out.parent / "undisturbed")
    text = stop(merge, monkeypatch, error)
    (partial,) = merge.out.parent.glob(".out.partial-*")
    assert re.search(rf"stopped with [1-9]\d* of 21 tensors finished, in {partial} \(.*the same command goes on", text)
    assert text.endswith(f"fastmerge clean {merge.out} removes it")
    # Only what is finished takes space.
    (leftover,) = leftovers_of(merge.out)
    assert leftover.path == partial and 0 < leftover.nbytes < merge.plan().bytes_written // 2
    assert leftover.finished == run(merge.plan(), merge.out).resumed
    assert same_files(merge.out, merge.out.parent / "undisturbed")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OutputError("full")])
def test_a_merge_that_finished_nothing_leaves_nothing(merge, monkeypatch, error):
    text = stop(merge, monkeypatch, error, after=0)
    assert text in ("full", "nothing is left of it")
    assert sorted(os.listdir(merge.out.parent)) == []


@pytest.mark.parametrize("error", [InputChanged("x: changed"), Refused("x: holds NaN")])
def test_a_refused_merge_leaves_nothing(merge, monkeypatch, error):
    assert stop(merge, monkeypatch, error) in ("x: changed", "x: holds NaN")
    assert sorted(os.listdir(merge.out.parent)) == []


def test_another_merge_for_the_same_target_names_the_older_partial(merge, monkeypatch):
    stop(merge, monkeypatch, KeyboardInterrupt())
    (older,) = merge.out.parent.glob(".out.partial-*")
    merge.recipe = merge.recipe.replace("weight: 1.5", "weight: 0.5")
    said = rf"another merge into this folder stopped and left {older} \(\d.*\); fastmerge clean {merge.out} removes it"
    assert re.search(said, stop(merge, monkeypatch, OutputError("full")))
    assert [note for note in run(merge.plan(), merge.out).notes if re.fullmatch(said, note)]
    assert older.exists()


def test_an_interrupt_while_publishing_is_complete_or_goes_on(merge, monkeypatch):
    rename = os.rename

    def late(a, b):
        rename(a, b)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match=f"output is complete, in {merge.out}"):
        patch.setattr(os, "rename", late)
        run(merge.plan(), merge.out)
    assert sorted(os.listdir(merge.out.parent)) == ["out"]


def test_leftovers_are_found_and_removed(merge, monkeypatch):
    stop(merge, monkeypatch, KeyboardInterrupt())
    folder = merge.out.parent
    (folder / ".other.lock").write_bytes(b"locked by fastmerge\n")
    (folder / ".alien.lock").touch()
    (folder / ".alien.partial-abcdefgh").mkdir()
    (folder / ".alien.partial-abcdefgh" / "thesis").touch()
    (folder / ".link.partial-abcdefgh").symlink_to(folder)
    found = leftovers_in(folder)
    assert [leftover.target.name for leftover in found] == ["other", "out"]
    for leftover in found:
        remove(leftover)
    assert sorted(os.listdir(folder)) == [
        ".alien.lock", ".alien.partial-abcdefgh", ".link.partial-abcdefgh"
    ]  # fmt: skip


def test_what_a_process_works_on_is_in_use(merge, monkeypatch):
    opened, seen = InputFiles.read, []

    def look(self, *args):
        seen.append(leftovers_of(merge.out))
        return opened(self, *args)

    monkeypatch.setattr(InputFiles, "read", look)
    run(merge.plan(), merge.out)
    assert [leftover.in_use for leftover in seen[0]] == [True, True]  # the lock and the partial folder
    with appearing(merge.out.parent / "report") as folder:
        (leftover,) = leftovers_of(merge.out.parent / "report")
        assert leftover.in_use
        with pytest.raises(OutputError, match="a process works there"):
            remove(leftover)
        (folder / "text").touch()
    assert (merge.out.parent / "report" / "text").exists()


def test_cleaning_brings_back_an_output_that_was_being_replaced(merge):
    run(merge.plan(), merge.out)
    partial = merge.out.parent / ".out.partial-01234567"
    partial.mkdir()
    shutil.copytree(merge.out, partial / "swap")
    shutil.copytree(merge.out, merge.out.parent / "old")
    merge.out.rename(partial / "aside")
    (leftover,) = leftovers_of(merge.out)
    remove(leftover)
    assert same_files(merge.out, merge.out.parent / "old")
    assert sorted(os.listdir(merge.out.parent)) == ["old", "out"]


@pytest.mark.parametrize("interrupts", [1, 3])
def test_impatient_interrupts_wait_for_the_workers(merge, monkeypatch, interrupts):
    """What a worker writes must not land in a file that was opened after its own was closed."""
    write, join = OutputFiles.write, scheduler.threading.Thread.join
    writing, wanted = threading.Event(), iter(range(interrupts))

    def slow(self, *args):
        writing.set()
        assert self._buffered, "the files were closed while a worker wrote"
        return write(self, *args)

    def interrupted(self, *args):
        if self.name.startswith("fastmerge-") and next(wanted, None) is not None:
            raise KeyboardInterrupt
        return join(self, *args)

    def stop_once_it_writes(self, interval):
        writing.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(OutputFiles, "write", slow)
    monkeypatch.setattr(scheduler.threading.Thread, "join", interrupted)
    monkeypatch.setattr(scheduler.Scheduler, "_wait", stop_once_it_writes)
    with pytest.raises(KeyboardInterrupt):
        run(merge.plan(), merge.out, SLICED)
    assert next(wanted, None) is None


def test_an_interrupt_while_the_workers_start(merge, monkeypatch):
    start, left = scheduler.threading.Thread.start, iter(range(1))

    def interrupted(self):
        if next(left, None) is None:
            raise KeyboardInterrupt
        start(self)

    monkeypatch.setattr(scheduler.threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(merge.plan(), merge.out, RunOptions(threads=3))
