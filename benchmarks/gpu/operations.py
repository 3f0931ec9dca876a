"""Times the operations one by one: sizes, numbers of models, dtypes, shares of equal magnitudes, cost of a launch."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from fastmerge import kernels

from .. import _measure
from .._bench import Bench, Contender, Run, rotating
from ..inventory import BY_NAME, CASES, Case, make_inputs
from .cases import MODELS, VERIFY_ELEMENTS, Point, sweep, verified

# Standard deviations of bfloat16 deltas: of 64M, about 2, 15 and 78 % have the median magnitude; with 0 all are equal.
TUNED = (2e-3, 1e-4, 2e-5, 0.0)
LAUNCHES = 100
# Like the norms of a large model.
SMALL, SMALL_ELEMENTS = 300, 8192

BASED, SELECT = BY_NAME["sparse_merge, all"], BY_NAME["select"]


def run(bench: Bench) -> None:
    """Time every operation at every point; first at the main ones, which are the most valuable."""
    points = sorted(((i, case, point) for case in CASES for i, point in enumerate(sweep(case, bench.check))),
                    key=lambda item: item[0])  # fmt: skip
    for i, case, point in points:
        with bench.attempt(f"{case.name} {point}"):
            _operation(bench, case, point, compared=case.compared and i == 0)
    for tuned in TUNED[-1:] if bench.check else TUNED:
        with bench.attempt(f"select {tuned}"):
            _operation(bench, SELECT, next(sweep(SELECT, bench.check)), tuned=tuned)
    for many in ("weighted_sum", "sparse_merge", "select_boundaries"):
        with bench.attempt(f"{many}_many"):
            _many(bench, many)
    for case in CASES[:1] if bench.check else CASES:
        with bench.attempt(f"{case.name}, host"):
            _launches(bench, case)


def _operation(bench: Bench, case: Case, point: Point, compared: bool = False, tuned: float | None = None) -> None:
    elements, models, dtype = point
    width = {} if tuned is None else {"tuned": tuned}
    some = elements if bench.check else VERIFY_ELEMENTS[0]
    backends = verified(bench.device, case, (some, models, dtype), bench.check, **width)
    if not backends:
        return
    nbytes = elements * dtype.itemsize * (models + 2)
    sets = []
    for seed in range(bench.sets(nbytes)):
        inputs = make_inputs(case.based, *point, bench.device, seed, **width)
        sets.append((torch.empty_like(inputs[0]), inputs))

    def call(backend: str) -> Run:
        return rotating(lambda out, inputs: case.run(out, inputs, backend), sets)

    inputs = sets[0][1]
    contenders = [Contender("fastmerge", call(backend), backend) for backend in backends]
    if compared:
        contenders.append(Contender("torch", call("reference")))
    if (plain := case.plain) is not None:
        contenders.append(Contender("torch", rotating(lambda out, inputs: plain(inputs), sets)))
    facts = {"shape": elements, "dtype": dtype, "models": len(inputs), "once": case.bytes_once(inputs)}
    name = case.name if tuned is None else f"{case.name}, deltas N(0, {tuned:g})"
    times = bench.measure(name, contenders, **facts)
    # Where there is something to fuse: a selection waits for the device at every rank.
    if compared and case.writes:
        compiled = bench.compile(lambda out, inputs: case.run(out, inputs, "reference"))
        own = min(times["fastmerge", backend] for backend in backends)
        bench.measure(name, [Contender("torch.compile", rotating(compiled, sets))], ratio_to=own, **facts)


def _many(bench: Bench, operation: str) -> None:
    """Time many small tensors in one call, and in a loop of single calls, until the host knows that all is done."""
    count, elements = (3, 301) if bench.check else (SMALL, SMALL_ELEMENTS)
    inputs = [make_inputs(True, elements, MODELS, torch.bfloat16, bench.device, seed) for seed in range(count)]
    outs, alone = ([torch.full_like(tensors[0], torch.nan) for tensors in inputs] for _ in range(2))

    def jobs(targets: list[Tensor]) -> list:
        pairs = list(zip(targets, inputs, strict=True))
        if operation == "select_boundaries":
            return [kernels.SelectJob(models, base, [[elements // 2]] * MODELS) for _, (base, *models) in pairs]
        if operation == "weighted_sum":
            return [kernels.SumJob(out, tensors, [0.25] * (MODELS + 1)) for out, tensors in pairs]
        keeps = [kernels.keep_random(1, model, 2**31) for model in range(MODELS)]
        return [
            kernels.MergeJob(out, base, models, [0.5] * MODELS, keeps, vote="weighted", divide="weights")
            for out, (base, *models) in pairs
        ]

    def together(backend: str) -> Run:
        many, work = getattr(kernels, f"{operation}_many"), jobs(outs)
        return lambda: many(work, backend=backend)

    def one_by_one(backend: str) -> Run:
        single = getattr(kernels, operation)
        fields = [job._asdict() for job in jobs(alone)]

        return lambda: [single(**arguments, backend=backend) for arguments in fields]

    backends = BASED.backends(bench.device, bench.backends)
    for backend in backends:
        # What is not written is returned, and what is written leaves nothing to return.
        results, expected = together(backend)() or [None] * count, one_by_one(backend)()
        same = results == expected and (all(map(torch.equal, outs, alone)) or None not in expected)
        assert same, f"{operation}_many: {backend} has other bits than single calls"
    contenders = [Contender("fastmerge", together(backend), backend) for backend in backends]
    contenders += [Contender("fastmerge loop", one_by_one(backend), backend) for backend in backends]
    bench.measure(
        f"{operation}_many of {count}", contenders, shape=count * elements, dtype=torch.bfloat16, models=MODELS + 1,
        once=2 * count * elements * (MODELS + 2 - (operation == "select_boundaries")), clock=bench.on_wall,
    )  # fmt: skip


def _launches(bench: Bench, case: Case) -> None:
    """Time what the host spends on one call: many calls on tensors that cost the device next to nothing."""
    launches, elements = (1, 64) if bench.check else (LAUNCHES, 4096)
    inputs = make_inputs(case.based, elements, case.models or MODELS, torch.bfloat16, bench.device)
    out = torch.empty_like(inputs[0])

    def host(call: Run) -> _measure.Contender:
        def measure() -> float:
            bench.synchronize()
            start = time.perf_counter()
            for _ in range(launches):
                call()
            return (time.perf_counter() - start) / launches

        return measure

    def call(backend: str) -> Run:
        return lambda: case.run(out, inputs, backend)

    backends = case.backends(bench.device, bench.backends)
    bench.measure(
        f"{case.name}, host", [Contender("fastmerge", call(backend), backend) for backend in backends],
        shape=elements, dtype=torch.bfloat16, models=len(inputs), once=case.bytes_once(inputs), clock=host,
    )  # fmt: skip
