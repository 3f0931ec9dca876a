"""How merges and operations are timed in memory: clocks, contenders in turns beside what bounds them, and rows."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fastmerge import kernels
from fastmerge.kernels import _native

from . import _measure, _record

# Of a contender on a GPU: most runs, and the seconds after which no other begins.
RUNS, BUDGET = 20, 0.15
COPY_BYTES = {"cpu": 2**27, "cuda": 2**28}
# All that the runs of a contender on a GPU read and write in turn: many times the largest L2 cache, 60 to 130 MB.
ROTATED_BYTES = 2**30
# About a millisecond at 2 GHz: longer than the host takes to launch what is timed.
LEAD_CYCLES = 2_000_000

Run = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """What is timed.

    Attributes:
        tool, backend: as the CSV names it; ``backend`` where a tool has several.
        run:           what is timed, by the clock of the measurement.
        measure:       a clock of its own, in the place of ``run``, for what does not run in this process.
    """

    tool: str
    run: Run | None = None
    backend: str = ""
    measure: _measure.Contender | None = None


@dataclass(frozen=True)
class Bound:
    """What no contender can beat: moving ``nbytes`` in the barest way, timed in the same turns; the fastest counts."""

    name: str
    nbytes: int
    ways: Sequence[_measure.Contender]


class Bench:
    """One run of the benchmarks: where it measures, for how long, and where its rows go.

    With ``check`` the code for a GPU runs on the CPU, on tiny tensors: it tests this program. The backends there stand
    for those of a GPU.
    """

    def __init__(
        self, csv: Path, device: str = "cuda", mergekit_python: str | None = None, check: bool = False,
        seconds: float = math.inf, commit: str | None = None, runs: int = RUNS, budget: float = BUDGET,
    ):  # fmt: skip
        self.csv, self.check, self.failures = csv, check, 0
        self.runs, self.budget = runs, budget
        self._end = time.monotonic() + seconds
        self.device = torch.device("cpu" if check else device)
        self.mergekit_python, version = None, ""
        with self.attempt("mergekit"):
            version = _record.mergekit_version(mergekit_python)
            self.mergekit_python = mergekit_python
        self.facts = _record.run_facts(torch.get_num_threads(), version)
        if check:
            self.facts["device"] = f"check on {self.facts['device']}"
        elif self.on_gpu:
            self.facts["device"] = torch.cuda.get_device_name()
        if commit:
            self.facts["commit"] = commit
        self.compile = (lambda function: function) if check else torch.compile

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Report a failure of ``what`` and go on; ``failures`` counts them."""
        try:
            yield
        except Exception:
            self.failures += 1
            print(f"{what} FAILED\n{traceback.format_exc()}", flush=True)

    @property
    def left(self) -> float:
        """Seconds until the step is stopped: what takes longer is left out."""
        return self._end - time.monotonic()

    def has(self, seconds: float, what: str) -> bool:
        """Return whether so much time is left; say so if ``what`` is left out."""
        if self.left >= seconds:
            return True
        print(f"{what} is left out: it may take {seconds:.0f} s, and {self.left:.0f} s are left", flush=True)
        return False

    @functools.cached_property
    def backends(self) -> list[str]:
        """The backends that run here, the preferred one first."""
        return backends_on(self.device, self.check)

    def on_device(self, run: Run) -> _measure.Contender:
        """Return the clock of the device: seconds from the first kernel of ``run`` to the end of its last.

        The device is kept busy until the host has launched ``run``, or waits for a result of it.
        """
        if not self.on_gpu:
            return _measure.timed(run)

        def measure() -> float:
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(LEAD_CYCLES)
            start.record()
            run()
            stop.record()
            stop.synchronize()
            return 1e-3 * start.elapsed_time(stop)

        return measure

    def on_wall(self, run: Run) -> _measure.Contender:
        """Return the clock of the wall: seconds until the host knows that all is done, on an idle device."""

        def measure() -> float:
            self.synchronize()
            start = time.perf_counter()
            run()
            self.synchronize()
            return time.perf_counter() - start

        return measure

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def release(self) -> None:
        """Give memory that torch keeps for later back to the device."""
        if self.on_gpu:
            torch.cuda.empty_cache()

    @functools.cached_property
    def copy(self) -> Bound:
        """A copy on the device: the bound of everything that is resident there."""
        nbytes = 2**12 if self.check else COPY_BYTES[self.device.type]
        if not self.on_gpu:
            contenders = _measure.copy_contenders(nbytes, torch.get_num_threads())
            return Bound("copy", 2 * nbytes, list(contenders.values()))
        # Random: zeros may move faster.
        source = torch.empty(nbytes, dtype=torch.uint8, device=self.device).random_()
        target = torch.empty_like(source)
        return Bound("copy", 2 * nbytes, [self.on_device(lambda: target.copy_(source))])

    def sets(self, nbytes: int) -> int:
        """Return how many sets of inputs of ``nbytes`` rotate, so that no run finds its inputs in a cache."""
        return max(1, -(-ROTATED_BYTES // max(1, nbytes))) if self.on_gpu else 1

    def measure(
        self,
        op: str,
        contenders: Sequence[Contender],
        *,
        shape: int,
        dtype: torch.dtype,
        models: int,
        once: int,
        moved: int | None = None,
        clock: Callable[[Run], _measure.Contender] | None = None,
        bound: Bound | None = None,
        ratio_to: float | None = None,
        budget: float | None = None,
        warm: bool = False,
    ) -> dict[tuple[str, str], float]:
        """Time contenders in turns with their bound, append a row for each, and return their milliseconds.

        Args:
            moved:    bytes that all passes move; by default ``once``.
            once:     bytes with every input read once and the output written once.
            clock:    by default the device's.
            bound:    by default a copy on the device.
            budget:   seconds of runs after which a contender stops; by default that of the whole run.
            warm:     whether everything has run before, so that nothing is compiled here.
            ratio_to: milliseconds that the column ``ratio`` is over; by default those of the first contender.
        """  # fmt: skip
        bound = bound or self.copy
        turns = (0, 0.0) if self.check else (self.runs, self.budget if budget is None else budget)
        clocks = {(c.tool, c.backend): c.measure or (clock or self.on_device)(c.run) for c in contenders}
        if not warm and self.on_gpu:
            # What compilers take must not decide how many runs follow.
            for measure in clocks.values():
                measure()
        bounds = {(bound.name, str(i)): way for i, way in enumerate(bound.ways)}
        samples = _measure.take_turns({**clocks, **bounds}, *turns)
        times = {key: _measure.time_columns(seconds) for key, seconds in samples.items()}
        bound_gbps = max(1e-6 * bound.nbytes / times.pop(key)["ms"] for key in bounds)
        first = ratio_to or next(iter(times.values()))["ms"]
        rows = []
        passes = moved or once
        for (tool, backend), columns in times.items():
            ms = columns["ms"]
            rows.append(self.facts | columns | {
                "op": op, "tool": tool, "backend": backend, "shape": shape,
                "dtype": str(dtype).removeprefix("torch."), "models": models,
                "bytes": passes, "gbps": 1e-6 * passes / ms, "fraction": 1e-6 * passes / ms / bound_gbps,
                "bytes_once": once, "bound": bound.name, "bound_gbps": bound_gbps,
                "times_bound": ms * bound_gbps / (1e-6 * once), "ratio": ms / first,
            })  # fmt: skip
            print(_line(rows[-1]), flush=True)
        _record.append(self.csv, _record.KERNEL_COLUMNS, rows)
        return {key: columns["ms"] for key, columns in times.items()}


def backends_on(device: torch.device, check: bool = False) -> list[str]:
    """Return the backends to time on a kind of device; print why others cannot run."""
    if device.type == "cpu":
        return ["cpu", "reference"] if check else [kernels.OPERATIONS["weighted_sum"].choose(device)[0]]
    found = []
    for name in ("cuda", "triton"):
        try:
            kernels.OPERATIONS["weighted_sum"].choose(device, name)
            found.append(name)
        except kernels.BackendError as error:
            print(error, flush=True)
    return found


def label(backend: str) -> str:
    """Return a backend as the CSV names it: that of the CPU with its instruction set."""
    return f"cpu {_native.cpu_extension().isa()}" if backend == "cpu" else backend


def rotating(run: Callable[..., object], sets: Sequence[Sequence[object]]) -> Run:
    """Return a call of ``run`` with the next of ``sets`` each time, so that no run finds its inputs in a cache."""
    turns = itertools.cycle(sets)
    return lambda: run(*next(turns))


def _line(row: Mapping[str, object]) -> str:
    return (
        f"{row['op']:32} {row['tool']:13} {row['backend']:7} {row['shape']:>12} {row['dtype']:9} {row['models']:>2} "
        f"{row['ms']:10.3f} ms {row['gbps']:8.1f} GB/s, {row['fraction']:5.2f} of {row['bound']}, {row['ratio']:7.2f} x"
    )
