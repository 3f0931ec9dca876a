"""``python -m fastmerge.demo.interrupting N COMMAND...``: a command of fastmerge, with Ctrl-C after N tensors."""

from __future__ import annotations

import itertools
import os
import runpy
import signal
import sys
import threading

from ..engine.checksums import Sums
from ..engine.journal import Journal
from ..engine.scheduler import Scheduler
from ..plan.types import OutputTensor


def interrupt_after(tensors: int) -> None:
    """Send this process the signal of Ctrl-C when so many tensors are merged; nothing goes on until it is heard."""
    note, fail, counted, heard = Journal.finished, Scheduler._fail, itertools.count(1), threading.Event()

    def finished(journal: Journal, output: OutputTensor, sums: Sums) -> None:
        note(journal, output, sums)
        if next(counted) == tensors:
            os.kill(os.getpid(), signal.SIGINT)
            heard.wait()

    def failed(scheduler: Scheduler, error: BaseException) -> None:
        scheduler._failure = error  # before its lock is free, which who waits may hold
        heard.set()
        fail(scheduler, error)

    # A shell lets what it runs in the background ignore the signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Journal.finished = finished  # type: ignore[method-assign, assignment]
    Scheduler._fail = failed  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    interrupt_after(int(sys.argv[1]))
    sys.argv[:] = ["fastmerge", *sys.argv[2:]]
    runpy.run_module("fastmerge", run_name="__main__")
