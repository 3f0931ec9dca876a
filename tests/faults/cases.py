"""The faults, each with what it does and how often it is tried."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from .children import (
    EVERY,
    FAIL,
    FAIL_ONWARD,
    KILL,
    KILL_AFTER_HALF,
    MAKE,
    READ,
    REMOVE,
    SHORT,
    SIGNAL,
    SYNC,
    WRITE,
    Fault,
    stopped,
)
from .inside import gpu_fails, input_in_another_case, worker_ends
from .world import Broken, World

Try = Callable[[World, Random], str]
"""Disturbs a merge once, at a place that the dice choose, and returns how it ended."""


@dataclass(frozen=True)
class Case:
    """A kind of fault. ``tries`` in the whole campaign, ``few`` in the short one."""

    name: str
    attempt: Try
    tries: int
    few: int


def _failing(what: int, kinds: int = EVERY, value: int = 0, replace: bool = False) -> Try:
    def attempt(world: World, dice: Random) -> str:
        fault = Fault(what, kinds, dice.randint(1, world.calls(kinds, replace)), value)
        return world.attempt(fault, replace)

    return attempt


def _always(fault: Fault) -> Try:
    return lambda world, dice: world.attempt(fault, dice.random() < 0.5)


def _signal(number: int) -> Try:
    def attempt(world: World, dice: Random) -> str:
        replace = dice.random() < 0.5
        fault = Fault(SIGNAL, at=dice.randint(1, world.calls(replace=replace)), value=number)
        world.prepare(replace)
        ended = world.merge(fault, *world.flags(replace))
        if ended.status not in (0, 128 + number):
            raise Broken(f"status {ended.status} after signal {number}: {ended.text}")
        world.check(ended, replace)
        left = [path.name for path in world.outputs.glob(".*.partial-*")]
        if any(name not in ended.text for name in left):
            raise Broken(f"left without a word: {left}: {ended.text}")
        world.go_on(replace)
        return world.outcome(ended)

    return attempt


def _change_an_input(world: World, dice: Random) -> str:
    """Stop the merge at a read of its inputs, after the plan is made, and change one of them."""
    planning = world.machine.run(lambda: _check(world), Fault(kinds=READ)).calls
    fault = Fault(SIGNAL, READ, dice.randint(planning + 1, world.calls(READ)), signal.SIGSTOP)
    world.prepare(False)
    child, pipe = world.machine.start(world.command(), fault)
    victim = world.inputs / f"model{dice.randrange(3)}" / f"model-0000{dice.randint(1, 2)}-of-00002.safetensors"
    if stopped(child):
        dice.choice(CHANGES)(victim)
        os.kill(child, signal.SIGCONT)
    ended = world.machine.wait(child, pipe)
    how = world.outcome(ended)
    if how == "one error" and victim.name not in ended.text:
        raise Broken(f"the error does not name {victim}: {ended.text}")
    shutil.rmtree(world.inputs)
    shutil.copytree(world._pristine, world.inputs)
    world.check(ended, False)
    world.go_on(False)
    return how


def _check(world: World) -> None:
    from fastmerge.cli import main

    main(["check", str(world.recipe), "--quiet"])


def _append(path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def _rewrite(path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-64] + bytes(64))


def _replace(path) -> None:
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes()[:-2] + b"\x01\x02")
    copy.rename(path)


CHANGES = (
    _append, _rewrite, _replace, os.unlink, os.utime,
    lambda path: os.truncate(path, path.stat().st_size // 2),
)  # fmt: skip


def _rival(world: World, dice: Random) -> str:
    """Stop a merge anywhere, let another one try, by the same recipe or another, and go on."""
    world.prepare(False)
    rival = dice.choice((world.recipe, world.other))
    child, pipe = world.machine.start(
        world.command(), Fault(SIGNAL, at=dice.randint(1, world.calls()), value=signal.SIGSTOP)
    )
    stops = stopped(child)
    second = world.merge(recipe=rival)
    if stops:
        os.kill(child, signal.SIGCONT)
    first = world.machine.wait(child, pipe)
    outcomes = sorted((world.outcome(first), world.outcome(second)))
    if outcomes != ["one error", "the same bytes"]:
        raise Broken(f"two merges into one folder ended with {outcomes}: {first.text} {second.text}")
    world.check(first if first.status == 0 else second, False, world.old if rival == world.other else world.expected)
    return "one error"


CASES = (
    Case("kill -9 anywhere, new target", _failing(KILL), 100, 3),
    Case("kill -9 anywhere, old output replaced", _failing(KILL, replace=True), 50, 2),
    Case("kill -9 while the output is published", _failing(KILL, MAKE | REMOVE, replace=True), 50, 2),
    Case("kill -9 in the middle of a write or read", _failing(KILL_AFTER_HALF, READ | WRITE), 30, 1),
    Case("SIGTERM", _signal(signal.SIGTERM), 20, 1),
    Case("SIGINT", _signal(signal.SIGINT), 20, 1),
    Case("SIGHUP", _signal(signal.SIGHUP), 20, 1),
    Case("disk full (ENOSPC), from any write on", _failing(FAIL_ONWARD, WRITE | MAKE, errno.ENOSPC), 30, 1),
    Case("write error (EIO), once", _failing(FAIL, WRITE | SYNC | MAKE | REMOVE, errno.EIO), 30, 1),
    Case("write errors (EIO), old output replaced", _failing(FAIL_ONWARD, WRITE | SYNC, errno.EIO, True), 30, 1),
    Case("read error (EIO), once", _failing(FAIL, READ, errno.EIO), 30, 1),
    Case("read errors (EIO) from one read on", _failing(FAIL_ONWARD, READ, errno.EIO), 30, 1),
    Case("reads cut short", _always(Fault(SHORT, READ)), 5, 1),
    Case("writes cut short", _always(Fault(SHORT, WRITE)), 5, 1),
    Case("file system turns read-only", _failing(FAIL_ONWARD, WRITE | MAKE | REMOVE, errno.EROFS), 20, 1),
    Case("target on a read-only file system", _always(Fault(FAIL_ONWARD, WRITE | MAKE | REMOVE, 1, errno.EROFS)), 5, 1),
    Case("wall clock jumps by a day", _always(Fault(clock=86400)), 5, 1),
    Case("an input changes meanwhile", _change_an_input, 30, 1),
    Case("two merges into one target", _rival, 20, 1),
    Case("a worker ends in the middle", worker_ends(SystemExit), 10, 1),
    Case("a worker finds no memory", worker_ends(MemoryError), 10, 1),
    Case("the GPU fails in the middle", gpu_fails, 20, 1),
    Case("input and target differ by case only", input_in_another_case, 5, 1),
)
