"""The driver of a merge: survey, solve, apply, for one tensor or many at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import gpus
from .apply import Apply
from .methods import Group, Method, Solve
from .source import Resident, Source
from .survey import Survey

# Bytes of inputs of small tensors that are merged side by side: on the processor they stay in its cache.
WINDOW_BYTES = 1 << 20
DEVICE_WINDOW_BYTES = 64 << 20
# Two threads feed a device: while one waits for the answer that it solves with, the kernels of the other run.
FEEDERS = 2


def solve_without_data(method: Method, group: Group) -> Apply | None:
    """Return the apply step if ``method`` needs no survey of this tensor, else None. Nothing is read.

    Planning calls it for every tensor: a step that is a ``Copy`` needs no arithmetic, and a method
    refuses parameters that contradict each other here, with a ValueError, before a merge starts.
    """
    step = method.merge(group)
    if isinstance(step, Apply):
        return step
    try:
        next(step)
    except StopIteration as stop:
        return stop.value
    step.close()
    return None


def solve(method: Method, group: Group, source: Source) -> Apply:
    """Run the surveys that ``method`` asks for over ``source`` and return its apply step.

    ValueError names the tensor where the method needs it whole and ``source`` holds it in parts.
    """
    if method.scratch_bytes(group) is not None and not source.whole:
        raise ValueError(f"{group.name}: {method.name} needs the whole tensor at once; its source has it in parts")
    step = method.merge(group)
    if isinstance(step, Apply):
        return step
    answer = None
    while True:
        try:
            survey = step.send(answer)
        except StopIteration as stop:
            return stop.value
        answer = survey.run(source)


def merge_source(method: Method, group: Group, source: Source, out: Tensor) -> None:
    """Merge a source into ``out``: the whole tensor, contiguous, in memory."""
    apply = solve(method, group, source)
    flat = out.view(-1)
    for chunk in source.chunks():
        like = chunk.tensors[0]
        apply(flat[chunk.offset : chunk.offset + like.numel()].view_as(like), chunk)


@dataclass(frozen=True)
class Job:
    """One output tensor of many: ``out`` is written, whole. It may be an input, not one of another job."""

    method: Method
    group: Group
    source: Resident
    out: Tensor


def merge_sources(jobs: Sequence[Job]) -> None:
    """Merge many tensors on the devices where they lie; every bit is as ``merge_source`` makes it.

    For the streams that are current here it is one piece of work: it follows what they were given before, and may
    still be under way on return. The host waits for nothing but the answers that methods solve with, and devices have
    other work meanwhile. No data leaves a device but those answers.

    CUDA graphs would not help: the 723 tensors of a 70B take some 10 launches each, of less than 10 us on the host,
    which is a fifth of the 0.3 s that their bytes take in the device's memory; so the host is ahead of the device.
    """
    queues: dict[torch.device, list[Job]] = {}
    for job in jobs:
        queues.setdefault(job.out.device, []).append(job)
    merge_here(queues.pop(torch.device("cpu"), []))
    _merge_there(queues)


def merge_here(jobs: Sequence[Job]) -> None:
    """Merge many tensors of one device on this thread."""
    for window in _windows(jobs):
        _merge_window(window)


def _merge_there(queues: Mapping[torch.device, Sequence[Job]]) -> None:
    """Merge tensors of devices that work beside the host."""
    feeders = []
    for device, jobs in queues.items():
        windows = deque(_windows(jobs))
        feeders += [_Feeder(gpus.Branch(device, number), windows) for number in range(FEEDERS)]
    for feeder in feeders:
        feeder.start()
    try:
        for feeder in feeders:
            feeder.join()
    finally:  # Ctrl-C comes here
        for feeder in feeders:
            feeder.stop()
    for feeder in feeders:
        if feeder.error is not None:
            raise feeder.error


class _Feeder(threading.Thread):
    """Merges windows of one device until none is left."""

    def __init__(self, branch: gpus.Branch, windows: deque[list[Job]]):
        super().__init__(name="fastmerge-feeder", daemon=True)
        self._branch, self._windows = branch, windows
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with torch.no_grad(), self._branch.working():
                while (window := self._take()) is not None:
                    _merge_window(window)
        except BaseException as error:
            self.error = error
            self._windows.clear()

    def stop(self) -> None:
        """Begin no other window, and let the device go on with the caller's work after what was begun."""
        self._windows.clear()
        self.join()
        self._branch.join()

    def _take(self) -> list[Job] | None:
        try:
            return self._windows.popleft()
        except IndexError:
            return None


def _windows(jobs: Sequence[Job]) -> list[list[Job]]:
    """Deal jobs into what is merged side by side: a large tensor alone, small ones together, whatever lies between."""
    if not jobs:
        return []
    limit = WINDOW_BYTES if jobs[0].out.device.type == "cpu" else DEVICE_WINDOW_BYTES
    windows: list[list[Job]] = []
    small: list[Job] = []
    filled = limit
    for job in jobs:
        nbytes = sum(tensor.nbytes for tensor in next(job.source.chunks()).every)
        if nbytes >= limit:
            windows.append([job])
            continue
        if filled + nbytes > limit:
            small, filled = [], 0
            windows.append(small)
        small.append(job)
        filled += nbytes
    return windows


def _merge_window(jobs: Sequence[Job]) -> None:
    """Merge tensors of one device in lockstep: equal questions of their methods are answered together."""
    applies: dict[int, Apply] = {}
    asking: dict[int, tuple[Solve, Survey]] = {}

    def advance(i: int, step: Solve, answer: Any) -> None:
        try:
            asking[i] = step, step.send(answer)
        except StopIteration as stop:
            asking.pop(i, None)
            applies[i] = stop.value

    for i, job in enumerate(jobs):
        step = job.method.merge(job.group)
        if isinstance(step, Apply):
            applies[i] = step
        else:
            advance(i, step, None)
    while asking:
        for kind, members in _by_type({i: survey for i, (_, survey) in asking.items()}).items():
            answers = kind.run_all([asking[i][1] for i in members], [jobs[i].source for i in members])
            for i, answer in zip(members, answers, strict=True):
                advance(i, asking[i][0], answer)
    for kind, members in _by_type(applies).items():
        chunks = [next(jobs[i].source.chunks()) for i in members]
        kind.apply_all([applies[i] for i in members], [jobs[i].out for i in members], chunks)


def _by_type(things: Mapping[int, Any]) -> dict[Any, list[int]]:
    """Return the keys of things by the type of the thing."""
    found: dict[Any, list[int]] = {}
    for key, thing in things.items():
        found.setdefault(type(thing), []).append(key)
    return found
