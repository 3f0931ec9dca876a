"""Crashes, full disks and rivals: a run stops in any way, and the same command finishes it with the same bytes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import signal
import subprocess
import sys

import pytest
from tiny_merges import make_merge, same_files

from fastmerge.engine import RunOptions, files, run
from fastmerge.engine.checksums import BLOCK
from fastmerge.engine.files import InputFiles, OutputFiles
from fastmerge.errors import CheckpointError, OutputError

# Budgets here are those of the compiled kernels.
pytestmark = pytest.mark.compiled

WIDE = {"hidden": 256, "inner": 640, "vocab": 768, "layers": 2}

# Runs that journal as often as they can, each killed at a random one of its writes, syncs and notes: before or after.
# One process imports torch for all of them; it computes nothing itself, so it may fork.
KILLED_RUNS = f"""
import itertools, os, random, signal, sys, threading
from fastmerge.engine import RunOptions, journal, run
from fastmerge.engine.files import OutputFiles
from fastmerge.engine.scheduler import Scheduler
from fastmerge.plan import make_plan
from fastmerge.recipe import load
journal.FLUSH_SECONDS = -1
write, tick, wait = OutputFiles.write, journal.Journal.tick, Scheduler._wait
ticked, ticks = threading.Condition(), 0

def count_tick(self):
    global ticks
    tick(self)
    with ticked:
        ticks += 1
        ticked.notify_all()

def write_after_tick(*args):  # what was noted before a write is in the journal after it
    with ticked:
        begun = ticks
        ticked.wait_for(lambda: ticks > begun + 1)
    write(*args)

OutputFiles.write, journal.Journal.tick = write_after_tick, count_tick
Scheduler._wait = lambda self, interval: wait(self, 0.001)

def die_at(event):
    events = itertools.count(1)

    def happens():
        if next(events) == event:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(call):
        def watch(*args):
            happens()
            call(*args)
            happens()
        return watch

    for owner, name in ((OutputFiles, "write"), (OutputFiles, "sync"), (journal.Journal, "finished")):
        setattr(owner, name, watched(getattr(owner, name)))

recipe, out, seed = sys.argv[1:]
dice = random.Random(int(seed))
tensors = len(make_plan(load(recipe)).outputs)
for _ in range(4):
    event = dice.randint(1, 3 * tensors // 2)  # a tensor takes four at the least
    child = os.fork()
    if child == 0:
        die_at(event)
        run(make_plan(load(recipe)), out, RunOptions(chunk={BLOCK}, ram=8 << 20))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    if os.path.exists(out):
        break
"""


def partial_folder(merge):
    (folder,) = merge.out.parent.glob(".out.partial-*")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_killed_at_random_points(tmp_path, method):
    merge = make_merge(tmp_path, method, shards=2, **WIDE)
    plan = merge.plan()
    run(plan, tmp_path / "undisturbed")
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    arguments = [sys.executable, "-c", KILLED_RUNS, merge.recipe, str(merge.out), str(seed)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == str(-signal.SIGKILL)
    if not merge.out.exists():
        journal = partial_folder(merge) / "journal.jsonl"
        lines = journal.read_text().count("\n") if journal.exists() else 1
        report = run(plan, merge.out)
        assert report.resumed == max(0, lines - 1)
    assert same_files(merge.out, tmp_path / "undisturbed")


def stop_after(monkeypatch, writes, error):
    """Let the output fail with ``error`` after so many writes."""
    write = OutputFiles.write
    left = iter(range(writes))

    def failing(self, *args):
        if next(left, None) is None:
            raise error
        return write(self, *args)

    monkeypatch.setattr(OutputFiles, "write", failing)


# Many small writes, in order.
SLICED = RunOptions(chunk=BLOCK, threads=1, ram=3 << 20)


def test_interrupt_says_how_to_go_on(tmp_path, monkeypatch):
    merge = make_merge(tmp_path, "linear", **WIDE)
    plan = merge.plan()
    with monkeypatch.context() as patch:
        stop_after(patch, 12, KeyboardInterrupt())
        with pytest.raises(
            KeyboardInterrupt, match=r"stopped with [1-9]\d* of \d+ tensors finished.*goes on from there"
        ):
            run(plan, merge.out, SLICED)
    assert run(plan, merge.out).resumed > 0


def test_disk_that_fills_up_during_the_run(tmp_path, monkeypatch):
    merge = make_merge(tmp_path, "linear", **WIDE)
    plan = merge.plan()
    run(plan, tmp_path / "undisturbed")
    pwrite, calls = files.pwrite, iter(range(20))

    def full(*args):
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(*args)

    with monkeypatch.context() as patch:
        patch.setattr(files, "pwrite", full)
        with pytest.raises(OutputError, match=r"no space left on the disk.*run the same command again"):
            run(plan, merge.out, SLICED)
    assert not merge.out.exists()
    assert run(plan, merge.out).resumed > 0
    assert same_files(merge.out, tmp_path / "undisturbed")


def test_disk_that_is_too_small_is_found_before_anything_is_read(tmp_path, monkeypatch):
    merge = make_merge(tmp_path, "linear", **WIDE)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {mounted.stderr.decode().strip()}")
    monkeypatch.setattr(InputFiles, "read", lambda *args: pytest.fail("an input was read"))
    try:
        with pytest.raises(OutputError, match="no space left on the disk"):
            run(merge.plan(), disk / "out")
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)


def test_damaged_partial_output_is_computed_again(tmp_path, monkeypatch):
    merge = make_merge(tmp_path, "linear", **WIDE)
    plan = merge.plan()
    run(plan, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        stop_after(patch, 12, OutputError("stop"))
        with pytest.raises(OutputError, match="stop"):
            run(plan, merge.out, SLICED)
    journal = partial_folder(merge) / "journal.jsonl"
    name = json.loads(journal.read_text().split("\n")[1])["name"]
    assert name == plan.outputs[len(plan.outputs) // 2].name  # where a run begins
    with open(partial_folder(merge) / "out" / "model.safetensors", "r+b") as file:
        file.seek(next(output.offset for output in plan.outputs if output.name == name))
        file.write(b"\xff\xff")
    journal.write_text(journal.read_text() + '{"name": "cut o')
    promised = journal.read_text().count("\n") - 1
    assert run(plan, merge.out).resumed == promised - 1
    assert same_files(merge.out, tmp_path / "undisturbed")


def test_changed_inputs_start_anew(tmp_path, monkeypatch):
    merge = make_merge(tmp_path, "linear", **WIDE)
    with monkeypatch.context() as patch:
        stop_after(patch, 12, OutputError("stop"))
        with pytest.raises(OutputError, match="stop"):
            run(merge.plan(), merge.out, SLICED)
    os.utime(tmp_path / "model1" / "model.safetensors")
    assert run(merge.plan(), merge.out).resumed == 0


def test_truncated_input_during_the_run(tmp_path, monkeypatch):
    merge = make_merge(tmp_path, "ties", **WIDE)
    opened = InputFiles.open

    def truncate_later(self):
        opened(self)
        os.truncate(tmp_path / "model1" / "model.safetensors", 200_000)

    monkeypatch.setattr(InputFiles, "open", truncate_later)
    with pytest.raises(CheckpointError, match=r"model1/model.safetensors: ends at byte \d+.*truncated"):
        run(merge.plan(), merge.out)
    assert not merge.out.exists()


def test_input_rewritten_during_the_run(tmp_path, monkeypatch):
    merge = make_merge(tmp_path, "ties", **WIDE)
    opened = InputFiles.open

    def touch_later(self):
        opened(self)
        os.utime(tmp_path / "model1" / "model.safetensors")

    monkeypatch.setattr(InputFiles, "open", touch_later)
    with pytest.raises(CheckpointError, match=r"model1/model.safetensors: changed since"):
        run(merge.plan(), merge.out)
    assert not merge.out.exists()


def test_second_run_on_the_same_target(tmp_path):
    merge = make_merge(tmp_path, "linear")
    lock = tmp_path / ".out.lock"
    with open(lock, "w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match=r"out: another fastmerge is writing it"):
            run(merge.plan(), merge.out)
    run(merge.plan(), merge.out)
    assert not lock.exists()
