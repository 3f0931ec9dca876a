"""``python -m fastmerge.demo.interrupting N COMMAND...``: a command of fastmerge, with Ctrl-C after N tensors."""

from __future__ import annotations

import itertools
import os
import signal
import sys

from ..cli import main
from ..engine.checksums import Sums
from ..engine.journal import Journal
from ..plan.types import OutputTensor


def interrupt_after(tensors: int) -> None:
    """Send this process the signal of Ctrl-C when so many tensors are merged."""
    note, counted = Journal.finished, itertools.count(1)

    def finished(journal: Journal, output: OutputTensor, sums: Sums) -> None:
        note(journal, output, sums)
        if next(counted) == tensors:
            os.kill(os.getpid(), signal.SIGINT)

    Journal.finished = finished  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    interrupt_after(int(sys.argv[1]))
    main(sys.argv[2:], prog_name="fastmerge")
