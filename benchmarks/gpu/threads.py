"""Times streamed merges from pinned memory by 4 to 32 threads."""

from __future__ import annotations

from .._bench import Bench
from ..kernels.cases import CASES
from .cases import TINY
from .streamed import PART, PINNED, host_models, stream

METHODS = ("linear", "ties")
THREADS = (4, 8, 18, 32)
# What all runs of a method may take.
METHOD_SECONDS = 20


def run(bench: Bench) -> None:
    _, models = host_models(bench)
    for case in CASES:
        if case.method in METHODS and bench.has(METHOD_SECONDS, case.method):
            with bench.attempt(case.method):
                for threads in THREADS:
                    stream(bench, case, TINY if bench.check else PART, models, PINNED, threads)
