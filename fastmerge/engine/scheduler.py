"""Worker threads over units of work: whatever is furthest along goes first, new work starts when a worker is idle.

So memory is taken late and given back early: no more units are in flight than it takes to keep the
workers busy, and while one worker waits for the disk another computes.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

Task = Callable[[Any], None]
"""One step of a unit; it is given the scratch of the worker that runs it."""


class Unit(Protocol):
    """A part of the work that is started as one."""

    def start(self) -> bool:
        """Take the memory that the unit needs; False when there is not enough now."""

    def stages(self) -> Generator[Sequence[Task], None, None]:
        """Yield lists of tasks. Those of one list run at once, in any order, before the next list is taken."""

    def finish(self) -> None:
        """Give the memory back; called once, after the last stage."""


class _Running:
    def __init__(self, unit: Unit, number: int):
        self.unit, self.number = unit, number
        self.stages = unit.stages()
        self.stage = 0
        self.pending = 0


class Scheduler:
    """Runs units on one thread per scratch object."""

    def __init__(self, units: Iterator[Unit], scratch: Sequence[Any]):
        self._units = units
        self._scratch = scratch
        self._next: Unit | None = next(units, None)
        self._numbers = itertools.count()
        self._ready: list[tuple[int, int, int, Task, _Running]] = []
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._over = threading.Condition(lock)
        self._in_flight = 0
        self._failure: BaseException | None = None
        self._alive = 0

    def run(self, tick: Callable[[], None], interval: float = 0.1) -> None:
        """Work until every unit is done, calling ``tick`` on this thread every ``interval`` seconds.

        The first exception of a task or of ``tick`` (also KeyboardInterrupt) stops the workers after
        their current tasks and is raised here.
        """
        threads = [
            threading.Thread(target=self._work, args=(scratch,), name=f"fastmerge-{i}", daemon=True)
            for i, scratch in enumerate(self._scratch)
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
            thread.join()
        if self._failure is not None:
            raise self._failure

    def _wait(self, interval: float) -> bool:
        with self._over:
            return not self._over.wait_for(lambda: self._alive == 0, timeout=interval)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def _work(self, scratch: Any) -> None:
        try:
            while (item := self._take()) is not None:
                task, running = item
                task(scratch)
                self._done(running)
        except BaseException as error:
            self._fail(error)
        finally:
            with self._over:
                self._alive -= 1
                self._over.notify_all()

    def _take(self) -> tuple[Task, _Running] | None:
        with self._changed:
            while self._failure is None:
                if self._ready:
                    *_, task, running = heapq.heappop(self._ready)
                    return task, running
                if self._next is not None and self._next.start():
                    running = _Running(self._next, next(self._numbers))
                    self._next = next(self._units, None)
                    self._in_flight += 1
                    self._advance(running)
                elif self._next is None and self._in_flight == 0:
                    return None
                else:
                    self._changed.wait()
            return None

    def _done(self, running: _Running) -> None:
        with self._changed:
            running.pending -= 1
            if running.pending == 0:
                self._advance(running)

    def _advance(self, running: _Running) -> None:
        """Queue the next stage of a unit, or finish it. Called with the lock held."""
        tasks = next(running.stages, None)
        if tasks is None:
            running.unit.finish()
            self._in_flight -= 1
            self._changed.notify_all()
            return
        running.stage -= 1
        running.pending = len(tasks)
        for i, task in enumerate(tasks):
            heapq.heappush(self._ready, (running.stage, running.number, i, task, running))
        self._changed.notify(len(tasks))
