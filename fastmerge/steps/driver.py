"""The driver of a merge: survey, solve, apply, for one tensor or many at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..kernels import FoundBoundary, FoundFactors, all_found, answers_stay
from .apply import Apply
from .census import Census, Round, take_censuses
from .method import Group, Method, Solve
from .source import Chunk, Resident, Source
from .stacks import batches_on
from .survey import Survey

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Bytes of inputs of small tensors that are merged side by side: on the processor they stay in its cache.
WINDOW_BYTES = 1 << 20
DEVICE_WINDOW_BYTES = 64 << 20
# Where a device's answers are waited for: a wait takes the host about 0.1 ms, in which a GPU reads some 400 MB.
WAITING_WINDOW_BYTES = 1 << 30
# Of tensors that must be merged whole: enough for a batch of their matrices.
WHOLE_WINDOW_BYTES = 4 << 30
# Windows that a device is given before the answers of an earlier one are waited for.
AHEAD = 1


def solve_without_data(method: Method, group: Group) -> Apply | None:
    """Return the apply step if ``method`` needs no survey of this tensor any more, else None. Nothing is read.

    Planning calls it for every tensor: a step that is a ``Copy`` needs no arithmetic, and a method
    refuses parameters that contradict each other here, with a ValueError, before a merge starts.
    """
    step = method.merge(group)
    if isinstance(step, Apply):
        return step
    answer = None
    try:
        while isinstance(survey := step.send(answer), Census) and survey.known:
            answer = survey.answer
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
    return solve_by_parts(method, group, source)


def solve_by_parts(method: Method, group: Group, source: Source) -> Apply:
    """Do as ``solve``, where the apply step need not be given a whole tensor."""
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

    @property
    def chunk(self) -> Chunk:
        """The inputs, whole."""
        return next(self.source.chunks())

    @property
    def stays(self) -> bool:
        """Whether what the method asks stays on the device: nothing is waited for before it is merged."""
        return self.method.leaves and answers_stay(self.source.tensors)

    @property
    def waits(self) -> bool:
        """Whether the method may ask what the host has to wait for."""
        return self.method.surveys and not self.stays


Left = tuple[Job, Sequence[FoundBoundary | FoundFactors]]
"""A job that was given to a device, and the answers that it takes from there."""


def merge_alone(job: Job) -> None:
    """Merge one tensor as ``merge_source`` does; where its answers stay on the device, the host waits in the end."""
    if job.stays:
        merge_on_device([job])
    else:
        merge_source(job.method, job.group, job.source, job.out)


def merge_sources(jobs: Sequence[Job]) -> None:
    """Merge many tensors on the devices where they lie; every bit is as ``merge_source`` makes it.

    GPUs get the work on the streams that are current here; it may still be under way on return. Answers of which
    methods make rules and factors alone stay on the GPU, where kernels read them: the host waits once, in the end,
    for a word whether each was found, and merges again where it was not. For other answers it waits, and the GPU has
    the next window's work meanwhile. No data leaves a GPU but those answers. Several devices work side by side, each
    driven by a thread. Methods that take a census read all tensors before the first one is merged, unless the groups
    know what it found.
    """
    jobs = _after_censuses(jobs)
    queues: dict[torch.device, list[Job]] = {}
    for job in jobs:
        queues.setdefault(job.out.device, []).append(job)
    if len(queues) < 2:
        merge_on_device(jobs)
        return
    from concurrent.futures import ThreadPoolExecutor

    from ..devices import gpus

    with ThreadPoolExecutor(len(queues)) as pool:
        runs = [pool.submit(_drive, queue, gpus.on_current_stream(device)) for device, queue in queues.items()]
    for run in runs:
        run.result()


def _after_censuses(jobs: Sequence[Job]) -> Sequence[Job]:
    """Return the jobs, which know what the censuses found that their methods take of all of them."""
    asking = {job.group.name: job for job in jobs if job.method.censuses(job.group) and not job.group.censuses}

    def take(names: Sequence[str], found: dict[str, Any]) -> Round:
        taken = Round()
        for job in map(asking.__getitem__, names):
            taken.ask(job.method, replace(job.group, censuses=found), job.source)
        return taken

    found = take_censuses(list(asking), take)
    return [replace(job, group=replace(job.group, censuses=found)) for job in jobs] if found else jobs


def _drive(jobs: Sequence[Job], stream: AbstractContextManager[object]) -> None:
    import torch

    with stream, torch.no_grad():
        merge_on_device(jobs)


def merge_on_device(jobs: Sequence[Job]) -> None:
    """Merge many tensors of one device on this thread.

    CUDA graphs would not help: the 562 tensors of a 70B with a survey take some 8 launches each, of about 3 us from
    C++, 13 ms in all, while the kernels of ties take 510 ms on an H200. Waiting for answers took 0.11 ms per tensor.
    """
    if not jobs:
        return
    device = jobs[0].out.device
    whole = WHOLE_WINDOW_BYTES if batches_on(device) else 0
    if device.type == "cpu":
        _merge_windows(_windows(jobs, WINDOW_BYTES, WINDOW_BYTES, whole), ahead=0)
    else:
        _merge_windows(_windows(jobs, DEVICE_WINDOW_BYTES, WAITING_WINDOW_BYTES, whole), AHEAD)


def _merge_windows(windows: Sequence[Sequence[Job]], ahead: int) -> None:
    """Merge windows in turn; ``ahead`` of them are begun before the answers of an earlier one are waited for."""
    waiting: deque[Iterator[None]] = deque()
    left: list[Left] = []
    for window in windows:
        waiting.append(_merge_window(window, left))
        _advance(waiting, len(waiting) - 1)
        while len(waiting) > ahead:
            _advance(waiting, 0)
    while waiting:
        _advance(waiting, 0)
    for (job, _), found in zip(left, all_found([answers for _, answers in left]), strict=True):
        if not found:  # nothing was written
            merge_source(job.method, job.group, job.source, job.out)


def _advance(waiting: deque[Iterator[None]], i: int) -> None:
    """Let a window give all the work that it can before its next answer; it goes to the end, or away when done."""
    window = waiting[i]
    del waiting[i]
    if next(window, True) is None:
        waiting.append(window)


def _windows(jobs: Sequence[Job], limit: int, waiting: int, whole: int = 0) -> list[list[Job]]:
    """Deal jobs into what is merged side by side: a large tensor alone, small ones together, whatever lies between.

    What must be merged whole lies beside others of its shape: they may be a batch.

    Args:
        limit:   bytes of inputs side by side.
        waiting: those where answers are waited for, once for a window.
        whole:   those of what must be merged whole; 0: as of all others.
    """
    windows: list[list[Job]] = []
    filling: dict[Hashable, tuple[list[Job], int]] = {}
    for job in jobs:
        nbytes = sum(tensor.nbytes for tensor in job.chunk.every)
        kind: Hashable = job.waits
        most = waiting if kind else limit
        if whole and job.method.scratch_bytes(job.group) is not None:
            kind, most = job.group.shape[-2:], whole
        if nbytes >= most:
            windows.append([job])
            continue
        window, held = filling.get(kind, ([], most))
        if held + nbytes > most:
            window, held = [], 0
            windows.append(window)
        window.append(job)
        filling[kind] = window, held + nbytes
    return windows


def _merge_window(jobs: Sequence[Job], left: list[Left]) -> Iterator[None]:
    """Merge tensors of one device in lockstep: equal questions of their methods are asked together.

    Yields when questions were asked, before it waits for the answers. Adds to ``left`` the jobs whose answers stay on
    the device.
    """
    stay = all(job.stays for job in jobs)
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
        asked, waits = [], False
        for kind, members in _by_type({i: survey for i, (_, survey) in asking.items()}).items():
            surveys, sources = [asking[i][1] for i in members], [jobs[i].source for i in members]
            if stay and (answers := kind.leave_all(surveys, sources)) is not None:
                asked.append((members, lambda answers=answers: answers))
            else:
                asked.append((members, kind.start_all(surveys, sources)))
                waits = True
        if waits:
            yield
        for members, wait in asked:
            for i, answer in zip(members, wait(), strict=True):
                advance(i, asking[i][0], answer)
    for kind, members in _by_type(applies).items():
        kind.apply_all([applies[i] for i in members], [jobs[i].out for i in members], [jobs[i].chunk for i in members])
    left.extend((jobs[i], apply.left) for i, apply in applies.items() if apply.left)


def _by_type(things: Mapping[int, Any]) -> dict[Any, list[int]]:
    """Return the keys of things by the type of the thing."""
    found: dict[Any, list[int]] = {}
    for key, thing in things.items():
        found.setdefault(type(thing), []).append(key)
    return found
