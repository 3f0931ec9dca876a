"""Timing: contenders take turns, so that a slow minute of the machine meets all of them alike."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

Contender = Callable[[], float]
Name = TypeVar("Name", bound=Hashable)


def timed(run: Callable[[], object]) -> Contender:
    """Return a contender that calls ``run`` and returns the seconds it took."""

    def measure() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return measure


def take_turns(
    contenders: Mapping[Name, Contender], runs: int, budget: float, long: float = 0.0
) -> dict[Name, list[float]]:
    """Return the seconds of up to ``runs`` runs of each contender, interleaved.

    The first run of each is a warm-up and not counted. A contender stops once its counted runs took ``budget`` seconds;
    when the warm-up alone took longer, it is the only run and it counts, unless it took less than ``long`` seconds:
    then two runs follow.
    """
    first = {name: run() for name, run in contenders.items()}
    samples = {name: [s] if s > max(budget, long) else [] for name, s in first.items()}
    for _ in range(runs):
        for name, run in contenders.items():
            if sum(samples[name]) < budget or (len(samples[name]) < 2 and first[name] < long):
                samples[name].append(run())
    return samples


def time_columns(seconds: Sequence[float]) -> dict[str, object]:
    """Return the columns ``runs``, ``ms`` (median), ``ms_q20`` and ``ms_q80``."""
    ms = sorted(1e3 * s for s in seconds)
    fifths = statistics.quantiles(ms, n=5, method="inclusive") if len(ms) > 1 else [ms[0]] * 4
    return {"runs": len(ms), "ms": statistics.median(ms), "ms_q20": fifths[0], "ms_q80": fifths[-1]}


def copy_contenders(nbytes: int, threads: int) -> dict[str, Contender]:
    """Return the plain ways to copy ``nbytes`` in memory with that many threads; each moves ``2 * nbytes``."""
    import numpy as np
    import torch

    source, target = torch.zeros(nbytes, dtype=torch.uint8), torch.zeros(nbytes, dtype=torch.uint8)
    bounds = [i * nbytes // threads for i in range(threads + 1)]
    parts = [(target.numpy()[a:b], source.numpy()[a:b]) for a, b in itertools.pairwise(bounds)]

    def memcpy() -> None:
        workers = [threading.Thread(target=np.copyto, args=part) for part in parts[1:]]
        for worker in workers:
            worker.start()
        np.copyto(*parts[0])
        for worker in workers:
            worker.join()

    return {"copy torch": timed(lambda: target.copy_(source)), "copy memcpy": timed(memcpy)}
