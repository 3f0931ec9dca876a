"""Lockstep: surveys of many tensors side by side, so that what they add up over the ranks goes in one message."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from ...devices import gpus
from .ranks import Agreement, Ranks

T = TypeVar("T")

Add = Callable[[np.ndarray], np.ndarray]
"""Adds up a table of 8-byte numbers over the ranks. Of floats, each is 0 on all ranks but one."""


class _Stopped(BaseException):
    """Ends a task whose ranks do not go on."""


class _Task:
    """One task, which runs while ``advance`` waits for it: until it asks for a sum, or ends."""

    def __init__(self, run: Callable[[Add], Any], device: torch.device):
        self._work = run
        self._stream = gpus.on_current_stream(device)
        self._go, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._stopped = False
        self.state: np.ndarray | None = None
        self.result: Any = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def advance(self) -> None:
        self._go.release()
        self._waits.acquire()
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        self._stopped = True
        self._go.release()
        self._thread.join()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._stopped:
                with torch.no_grad(), self._stream:
                    self.result = self._work(self._add)
        except _Stopped:
            pass
        except Exception as error:
            self.error = error
        finally:
            self.state = None
            self._waits.release()

    def _add(self, state: np.ndarray) -> np.ndarray:
        self.state = state
        self._waits.release()
        self._go.acquire()
        if self._stopped:
            raise _Stopped
        assert self.state is not None, "the sum was put in its place"
        return self.state


def run_together(
    ranks: Ranks, agreement: Agreement, tasks: Sequence[Callable[[Add], T]], device: torch.device
) -> list[T]:
    """Return what the tasks return. One runs at a time, until it asks for a sum; then all sums are made at once.

    Every rank has the same tasks in the same order, which ask for sums of the same shapes.
    """
    running = [_Task(task, device) for task in tasks]
    every = list(running)
    try:
        while running:
            for task in running:
                task.advance()
            running = [task for task in running if task.state is not None]
            if running:
                agreement.check()
                for task, total in zip(running, _totals(ranks, [_state(task) for task in running]), strict=True):
                    task.state = total
    finally:
        for task in every:
            task.stop()
    return [task.result for task in every]


def _state(task: _Task) -> np.ndarray:
    assert task.state is not None, "only what waits for a sum is asked"
    return task.state


def _totals(ranks: Ranks, states: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    # A float that is 0 elsewhere keeps its bits in a sum of integers.
    flat = [np.ascontiguousarray(state).reshape(-1).view(np.int64) for state in states]
    sums = np.split(ranks.total(np.concatenate(flat)), np.cumsum([len(part) for part in flat])[:-1])
    for state, part in zip(states, sums, strict=True):
        yield part.view(state.dtype).reshape(state.shape)
