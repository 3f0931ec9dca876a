"""Times Subspace Boosting of large matrices beside ways through a decomposition, and adds them up to whole models.

Every way is verified on small deltas against an SVD in float64, and at each size against ``torch gram64``, which is
near float64 there, before its time is recorded. The two parts of our way, the polar factor and the search for leading
triplets, are timed apart as well. Rows go to a file of their own, ``gpu_spectral.csv`` beside ``gpu.csv``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastmerge.kernels.spectral import Info
from fastmerge.kernels.spectral._by_products import by_products, factored, raised
from fastmerge.kernels.spectral._matrices import full_float32
from fastmerge.kernels.spectral._products import Products
from fastmerge.kernels.spectral._rules import Boost

from .. import _measure, _record
from .._bench import Bench

BETA = 0.2
RUNS, BUDGET = 3, 3.0
# Shorter runs are repeated: the first one allocates, and loads what the library computes with.
LONG = 5.0
# Of the whole step. A decomposition that would not fit in what is left, by its rate so far, is left out.
SECONDS = 125.0

# Ways that may be left out.
DECOMPOSITIONS = ("torch", "torch gesvd")

# The boosted matrices, and k of each.
Boosted = tuple[Tensor, list[int]]
Way = Callable[[Tensor], Boosted]
# Columns of a way's row: times, error, rank.
Columns = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Matrices [batch, m, n], and how many such batches a 70B model and a mixture of experts have."""

    batch: int
    m: int
    n: int
    count_70b: int = 0
    count_experts: int = 0

    @property
    def shape(self) -> str:
        return f"{self.batch}x{self.m}x{self.n}" if self.batch > 1 else f"{self.m}x{self.n}"

    @property
    def cost(self) -> float:
        """In proportion to the operations of every way."""
        return self.batch * max(self.m, self.n) * min(self.m, self.n) ** 2


# Cheap ones first, so that the rates of decompositions are known before they take seconds. Llama-3-70B: 80 layers with
# q and o, gate, up and down, k and v; embeddings stay with the base method. The mixture of experts: 48 layers of 128
# experts with three matrices. Wide matrices (k, v, down) are the transposes.
CASES = (
    Case(1, 8192, 1024, count_70b=160),
    Case(64, 2048, 768, count_experts=48 * 128 * 3 // 64),
    Case(1, 8192, 8192, count_70b=160),
    Case(1, 28672, 8192, count_70b=240),
)
CHECK_CASES = (Case(1, 32, 16, count_70b=160), Case(2, 32, 24, count_experts=288))
VERIFIED = (Case(1, 1024, 640), Case(3, 384, 256))
# A bfloat16 difference of this rank over its smaller side.
RANK = 1 / 16


def run(bench: Bench) -> None:
    """Time all ways on all cases, and compose."""
    start = time.monotonic()
    everything = ways(bench.check)
    with full_float32():
        for case in CHECK_CASES if bench.check else VERIFIED:
            everything = verify(everything, case, bench)
        measured: dict[Case, dict[str, Columns]] = {}
        # Seconds per unit of cost, in the case before.
        rates: dict[str, float] = {}
        for case in CHECK_CASES if bench.check else CASES:
            left = min(SECONDS - (time.monotonic() - start), bench.left)
            late = [tool for tool in DECOMPOSITIONS if tool in rates and rates[tool] * case.cost > left / 2]
            for tool in late:
                print(f"{case.shape}: {tool} is left out, it would take {rates[tool] * case.cost:.0f} s", flush=True)
            with bench.attempt(f"subspace_boost {case.shape}"):
                measured[case] = measure(bench, case, {t: way for t, way in everything.items() if t not in late})
                rates |= {tool: 1e-3 * row["ms"] / case.cost for tool, row in measured[case].items()}
                compose(bench, measured)


def ways(check: bool) -> dict[str, Way]:
    """Return the ways to boost, the peers last; the default route of a GPU is ``fastmerge``."""
    return {
        "fastmerge": _by_products,
        "torch gram64": gram64,
        "torch": lambda x: decomposed(x, None),
        # No other driver on a CPU.
        "torch gesvd": lambda x: decomposed(x, None if check else "gesvd"),
    }


def _by_products(x: Tensor) -> Boosted:
    result, infos, accepted = by_products(x, [Boost(BETA)] * len(x))
    assert all(accepted), f"a certificate failed: {infos}"
    return result, [_k(info) for info in infos]


def _k(info: Info) -> int:
    assert info.k is not None
    return info.k


def decomposed(x: Tensor, driver: str | None) -> Boosted:
    """As the reference code does it, through an SVD in the precision of ``x``."""
    u, s, vh = torch.linalg.svd(x, full_matrices=False, driver=driver)
    cut, k = _cut(s)
    return (u * s.clamp(min=cut).unsqueeze(-2)) @ vh, k


def gram64(x: Tensor) -> Boosted:
    """As a careful user would, through the eigenvectors of the Gram matrix in float64."""
    wide = x.double()
    squares, v = torch.linalg.eigh(wide.mT @ wide)
    s = squares.clamp(min=0).sqrt()
    cut, k = _cut(s.flip(-1))
    return ((wide @ (v * (s.clamp(min=cut) / s).unsqueeze(-2))) @ v.mT).float(), k


def _cut(s: Tensor) -> tuple[Tensor, list[int]]:
    reached = s.cumsum(-1) / s.sum(-1, keepdim=True) >= BETA
    k = reached.int().argmax(-1, keepdim=True)
    return s.gather(-1, k), k.flatten().tolist()


def make_deltas(case: Case, device: torch.device, seed: int = 0) -> Tensor:
    """Return differences of bfloat16 matrices: an update of low rank, noise, and what rounding leaves of them."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(case.batch, *shape, generator=generator, device=device)

    rank = max(1, int(RANK * min(case.m, case.n)))
    base = (0.02 * normal(case.m, case.n)).bfloat16()
    update = 0.002 * normal(case.m, rank) @ normal(rank, case.n) / rank**0.5 + 0.0003 * normal(case.m, case.n)
    return (base.float() + update).bfloat16().float() - base.float()


def verify(everything: dict[str, Way], case: Case, bench: Bench) -> dict[str, Way]:
    """Return the ways that are as near to an SVD in float64 as the one in float32, with the same k; report others."""
    x = make_deltas(case, bench.device, seed=1)
    exact = decomposed(x.double(), None)
    results: dict[str, Boosted] = {}
    for tool, way in everything.items():
        with bench.attempt(f"{case.shape}: {tool}"):
            results[tool] = way(x)
    right = right_ones(bench, case, errors_of(results, exact), results, exact[1])
    return {tool: everything[tool] for tool in right}


def errors_of(results: dict[str, Boosted], exact: Boosted) -> dict[str, float]:
    """Return the largest relative Frobenius error in the batch."""
    norms = torch.linalg.matrix_norm(exact[0].double())
    return {
        tool: float((torch.linalg.matrix_norm(result.double() - exact[0].double()) / norms).max())
        for tool, (result, _) in results.items()
    }


def right_ones(
    bench: Bench, case: Case, errors: dict[str, float], results: dict[str, Boosted], k: list[int]
) -> list[str]:
    """Return the ways that are as exact as promised and cut where they should; report the others as failures."""
    found = []
    for tool in results:
        with bench.attempt(f"{case.shape}: {tool}"):
            if tool.startswith("fastmerge"):
                limit = 1.5 * errors.get("torch", 1e-5) + 1e-6
                assert errors[tool] <= limit, f"{tool} is off by {errors[tool]:.2g}, more than {limit:.2g}"
                assert results[tool][1] == k, f"{tool} cuts at {results[tool][1]}, not {k}"
            found.append(tool)
    return found


def measure(bench: Bench, case: Case, some: dict[str, Way]) -> dict[str, Columns]:
    """Time ways in turns, verify what they returned, and append a row for each."""
    x = make_deltas(case, bench.device)
    results: dict[str, Boosted] = {}

    def clock(tool: str, way: Way) -> _measure.Contender:
        def keep() -> None:
            results[tool] = way(x)

        timed = bench.on_wall(keep)

        def seconds() -> float:
            # A way that cannot run costs its own row alone.
            with bench.attempt(f"{case.shape}: {tool}"):
                return timed()
            return math.inf

        return seconds

    turns = (0, 0.0) if bench.check else (RUNS, BUDGET, LONG)
    samples = _measure.take_turns({tool: clock(tool, way) for tool, way in some.items()}, *turns)
    exact = results["torch gram64"]
    errors = errors_of(results, exact)
    columns = {
        tool: {**_measure.time_columns(samples[tool]), "error": errors[tool], "rank": max(results[tool][1])}
        for tool in right_ones(bench, case, errors, results, exact[1])
    }
    append(bench, "subspace_boost", case.shape, columns)
    with bench.attempt(f"{case.shape}: parts"):
        if "fastmerge" in columns:
            measure_parts(bench, case, x, columns["fastmerge"])
    return columns


def measure_parts(bench: Bench, case: Case, x: Tensor, whole: Columns) -> None:
    """Time the polar factor and the search apart, and append a row for each."""
    products = Products.on(bench.device)
    given = factored(x, True, products)
    # The result takes the place of the factor.
    clone = replace(given, p=replace(given.p, whole=given.p.whole.clone()))
    parts = {
        "polar_factor": lambda: factored(x, True, products),
        "leading_triplets": lambda: raised(clone, [Boost(BETA)] * case.batch),
    }
    turns = (0, 0.0) if bench.check else (RUNS, BUDGET, LONG)
    samples = _measure.take_turns({op: bench.on_wall(run) for op, run in parts.items()}, *turns)
    info = raised(replace(given, p=replace(given.p, whole=given.p.whole.clone())), [Boost(BETA)] * case.batch)[1][0]
    print(f"{case.shape}: {info.iterations} steps, {info.passes} products of the search", flush=True)
    for op, seconds in samples.items():
        append(bench, op, case.shape, {"fastmerge": {**whole, **_measure.time_columns(seconds)}})


def compose(bench: Bench, measured: dict[Case, dict[str, Columns]]) -> None:
    """Append the sum over the matrices of every model whose last part was just measured."""
    for name, of in (("70B", lambda case: case.count_70b), ("experts", lambda case: case.count_experts)):
        parts = [case for case in (CHECK_CASES if bench.check else CASES) if of(case)]
        if parts[-1] is not next(reversed(measured)) or not all(part in measured for part in parts):
            continue
        columns: dict[str, Columns] = {}
        for tool in measured[parts[0]]:
            if rows := [measured[part][tool] for part in parts if tool in measured[part]]:
                if len(rows) < len(parts):
                    continue
                sums = {
                    key: sum(of(part) * row[key] for part, row in zip(parts, rows, strict=True))
                    for key in ("ms", "ms_q20", "ms_q80")
                }
                largest = {key: max(row[key] for row in rows) for key in ("error", "rank")}
                columns[tool] = {"runs": min(row["runs"] for row in rows), **sums, **largest}
        append(bench, f"subspace_boost, {name}", " + ".join(f"{of(part)} of {part.shape}" for part in parts), columns)


def append(bench: Bench, op: str, shape: str, columns: dict[str, Columns]) -> None:
    """Append a row for each tool, and print it."""
    rows = [
        {
            **bench.facts, **row, "op": op, "tool": tool, "shape": shape, "dtype": "float32",
            "ratio": row["ms"] / columns.get("fastmerge", next(iter(columns.values())))["ms"],
        }
        for tool, row in columns.items()
    ]  # fmt: skip
    for row in rows:
        print(
            f"{op:23} {row['tool']:22} {shape:>12} k {row['rank']:4} {row['ms']:12.1f} ms ({row['runs']} runs), error "
            f"{row['error']:8.1e}, {row['ratio']:8.2f} x fastmerge",
            flush=True,
        )
    _record.append(bench.csv.with_stem(f"{bench.csv.stem}_spectral"), _record.SPECTRAL_COLUMNS, rows)
