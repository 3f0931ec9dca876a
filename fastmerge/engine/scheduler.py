"""Worker threads over units of work: whatever is furthest along goes first, new work starts when a worker is idle.

So memory is taken late and given back early: no more units are in flight than it takes to keep the
workers busy, and while one worker waits for the disk another computes. Workers of one memory share units;
several memories (GPUs) are dealt the next unit as their workers become idle, so that a faster one does more.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol

from ..errors import BudgetError, FastmergeError
from .arena import Memory, Slot

# Threads that wait for the disk while others have work.
WRITERS = 2

Task = Callable[[Slot], None]
"""One step of a unit; it is given the scratch of the worker that runs it."""


class Unit(Protocol):
    """A part of the work that is started as one."""

    def start(self, memory: Memory) -> bool:
        """Take what the unit needs of ``memory``; False when there is not enough now.

        After True, all tasks of the unit run on workers of this memory.
        """

    def stages(self) -> Generator[Sequence[Task], None, None]:
        """Yield lists of tasks. Those of one list run at once, in any order, before the next list is taken."""

    def finish(self) -> None:
        """Give the memory back; called once, after the last stage."""


class _Running:
    """A unit that was started. ``pending`` counts the tasks of its stage that are not done."""

    def __init__(self, unit: Unit, number: int, team: _Team):
        self.unit, self.number, self.team = unit, number, team
        self.stages = unit.stages()
        self.stage = 0
        self.pending = 0


class _Team:
    """The workers and the slots of one memory.

    Attributes:
        ready:   tasks that may begin, what is furthest along first.
        free:    slots that nobody uses; the last one that was used goes first, since its memory was touched.
        left:    slots whose tasks have returned, while a device still works on what they began, or a write is due;
                 oldest first.
        writing: threads that complete a slot.
        most:    of these, while there is a free slot and a task for it.
        started: units that are not finished.
    """

    def __init__(self, lock: threading.RLock, memory: Memory, slots: Sequence[Slot], most: int):
        self.changed = threading.Condition(lock)
        self.memory = memory
        self.ready: list[tuple[int, int, int, Task, _Running]] = []
        self.free = list(reversed(slots))
        self.left: deque[tuple[Slot, _Running]] = deque()
        self.writing, self.most = 0, most
        self.started = 0

    def finished(self) -> tuple[Slot, _Running] | None:
        """Take the first slot that can be completed without a wait for a device, if it is time to."""
        if self.writing >= self.most and self.free:
            return None
        for i, (slot, running) in enumerate(self.left):
            if slot.finished():
                del self.left[i]
                return slot, running
        return None


class Scheduler:
    """Runs units on threads, each task in a slot.

    There may be more slots than threads: nobody waits for a device as long as there is a task that can begin. Where the
    processor computes, no more than ``WRITERS`` threads wait for the disk then.
    """

    def __init__(
        self,
        units: Iterator[Unit],
        slots: Sequence[Slot],
        workers: int | None = None,
        stop: Callable[[], None] = lambda: None,
    ):
        """``workers``: threads, for all memories together; None takes one per slot. ``stop`` ends waits of tasks."""
        self._units = units
        self._workers = workers or len(slots)
        self._stop = stop
        self._next: Unit | None = next(units, None)
        self._numbers = itertools.count()
        self._lock = threading.RLock()
        memories = dict.fromkeys(slot.memory for slot in slots)
        # One that was given two threads has one of them compute.
        most = min(WRITERS, max(1, self._workers // 2)) if slots[0].memory is slots[0].arena else self._workers
        self._teams = [_Team(self._lock, own, [s for s in slots if s.memory is own], most) for own in memories]
        # Held while workers are alive. A lock alone: what is made of locks in Python may stay locked for ever when an
        # interrupt reaches the main thread in its middle.
        self._over = threading.Lock()
        self._over.acquire()
        self._failure: BaseException | None = None
        self._alive = 0

    def run(self, tick: Callable[[], None], interval: float = 0.1) -> None:
        """Work until every unit is done, calling ``tick`` on this thread every ``interval`` seconds.

        The first exception of a task or of ``tick`` (also KeyboardInterrupt) stops the workers after
        their current tasks and is raised here.
        """
        threads = [
            threading.Thread(target=self._work, args=(team,), name=f"fastmerge-{i}", daemon=True)
            for i, team in zip(range(self._workers), itertools.cycle(self._teams), strict=False)
        ]
        self._alive = len(threads)
        try:
            for thread in threads:
                thread.start()
            while self._wait(interval):
                tick()
        except BaseException as error:
            self._fail(error)
        for thread in threads:
            _join(thread)
        if isinstance(self._failure, MemoryError) and not isinstance(self._failure, FastmergeError):
            raise BudgetError("out of memory; give --ram less than is free on this machine") from self._failure
        if isinstance(self._failure, SystemExit):  # of a thread, which it would end without a word
            raise FastmergeError("a worker ended in the middle of its work; run the same command again")
        if self._failure is not None:
            raise self._failure

    def _wait(self, interval: float) -> bool:
        """Wait for the end, so long at most; True when it has not come."""
        return not self._over.acquire(timeout=interval)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or error
            self._wake_all()
        self._stop()

    def _wake_all(self) -> None:
        for team in self._teams:
            team.changed.notify_all()

    def _work(self, team: _Team) -> None:
        try:
            while (item := self._take(team)) is not None:
                slot, task, running = item
                with slot.working():
                    if task is not None:
                        task(slot)
                        if slot.left():
                            self._leave(slot, running)
                            continue
                    slot.complete()
                self._done(slot, running, task is None)
        except BaseException as error:
            self._fail(error)
        finally:
            with self._lock:
                self._alive -= 1
                if self._alive == 0:
                    self._over.release()

    def _take(self, team: _Team) -> tuple[Slot, Task | None, _Running] | None:
        """Return what is to do next: a task and the slot for it, or a slot to complete; None when all is done."""
        with self._lock:
            while self._failure is None:
                if completed := team.finished():
                    team.writing += 1
                    return completed[0], None, completed[1]
                if team.free and team.ready:
                    *_, task, running = heapq.heappop(team.ready)
                    return team.free.pop(), task, running
                if team.free and self._next is not None and self._next.start(team.memory):
                    running = _Running(self._next, next(self._numbers), team)
                    self._next = next(self._units, None)
                    team.started += 1
                    if len(self._teams) > 1:  # the unit that is next now may fit another memory
                        self._wake_all()
                    self._advance(running)
                elif team.left:
                    slot, running = team.left.popleft()
                    team.writing += 1
                    return slot, None, running
                elif self._next is None and team.started == 0:
                    return None
                else:
                    team.changed.wait()
            return None

    def _leave(self, slot: Slot, running: _Running) -> None:
        with self._lock:
            running.team.left.append((slot, running))
            running.team.changed.notify()

    def _done(self, slot: Slot, running: _Running, completed: bool) -> None:
        with self._lock:
            running.team.writing -= completed
            running.team.free.append(slot)
            running.pending -= 1
            if running.pending == 0:
                self._advance(running)
            elif running.team.ready:
                running.team.changed.notify()

    def _advance(self, running: _Running) -> None:
        """Queue the next stage of a unit, or finish it. Called with the lock held."""
        team = running.team
        tasks = next((stage for stage in running.stages if stage), None)  # a stage may have nothing to do
        if tasks is None:
            running.unit.finish()
            team.started -= 1
            team.changed.notify_all()
            return
        running.stage -= 1
        running.pending = len(tasks)
        for i, task in enumerate(tasks):
            heapq.heappush(team.ready, (running.stage, running.number, i, task, running))
        team.changed.notify(len(tasks))


def _join(thread: threading.Thread) -> None:
    """Wait for the end of a thread, whatever interrupts come meanwhile: it may be writing to files that close next."""
    while True:
        try:
            return thread.join()
        except RuntimeError:  # an interrupt came before it was started
            return None
        except KeyboardInterrupt:
            continue
