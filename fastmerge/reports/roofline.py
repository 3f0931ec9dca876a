"""How far merging in memory is from the copy bandwidth of this machine, measured side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..functional import merge_tensors

RUNS = 5
# method: number of fine-tunes beside the base, parameters
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "task_arithmetic": (3, {"weight": 0.5}),
    "slerp": (1, {"t": 0.5}),
    "ties": (3, {"weight": 1.0, "density": 0.2}),
    "dare_ties": (3, {"weight": 1.0, "density": 0.2}),
}


@dataclass(frozen=True)
class Measurement:
    """Median seconds of an operation, and the bytes of its inputs and output, each counted once."""

    name: str
    seconds: float
    nbytes: int

    @property
    def rate(self) -> float:
        return self.nbytes / self.seconds


def measure(elements: int, backend: str | None = None) -> Iterator[Measurement]:
    """Yield the copy bandwidth first, then some methods on bfloat16 tensors of ``elements`` elements."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(elements, generator=generator).bfloat16()
    tuned = [(base.float() + 0.01 * torch.randn(elements, generator=generator)).bfloat16() for _ in range(3)]
    out = torch.zeros_like(base)
    yield Measurement("copy", _median(lambda: out.copy_(base)), 2 * base.nbytes)
    for method, (models, parameters) in CASES.items():

        def run(method: str = method, models: int = models, parameters: dict[str, Any] = parameters) -> None:
            merge_tensors(base, tuned[:models], method=method, backend=backend, out=out, **parameters)

        yield Measurement(method, _median(run), (models + 2) * base.nbytes)


def _median(run: Callable[[], object]) -> float:
    run()
    seconds = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)
