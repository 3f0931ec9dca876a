"""Times what Subspace Boosting is made of, one by one: what a device's design rests on. Rows as in ``spectral``.

Decompositions and solves in float64, split products by each kernel and with two lengths of sums, the polar factor
alone, the search for leading triplets on several spectra, and batches of matrices that are too small to fill the device
alone.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from unittest import mock

import torch
from torch import Tensor

from fastmerge.kernels.spectral import _polar
from fastmerge.kernels.spectral._by_products import factored, raised
from fastmerge.kernels.spectral._matrices import full_float32
from fastmerge.kernels.spectral._products import Products
from fastmerge.kernels.spectral._rules import Boost

from .. import _measure
from .._bench import Bench
from .spectral import BETA, Case, append, gram64, make_deltas

RUNS, BUDGET = 3, 0.5
# Matrices that are decomposed: the blocks of a search, alone and of all experts.
DECOMPOSED = ((1, 256), (1, 384), (1, 512), (1, 1024), (64, 32))
PRODUCTS = ((8192, 8192), (28672, 8192))
NARROW = (16, 64, 256)
FACTORED = ((4096, 4096), (8192, 8192), (28672, 8192))
SEARCHED = 4096
BATCHES = (Case(64, 2048, 768), Case(16, 8192, 1024))
# What starts a kernel, and what waits for one, in a profile.
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")

Ways = Mapping[str, Callable[[], object]]


def run(bench: Bench) -> None:
    """Run the experiments, each for itself."""
    with full_float32():
        for experiment in (decompositions, products, factors, searches, batches):
            with bench.attempt(experiment.__name__):
                if bench.has(5, experiment.__name__):
                    experiment(bench)
            bench.release()


def decompositions(bench: Bench) -> None:
    """Time what a search does in float64, and what a route through Cholesky factors would."""
    for batch, n in ((1, 8), (3, 4)) if bench.check else DECOMPOSED:
        symmetric = _gram(bench, batch, n)
        _time(bench, "eigh float64", f"{batch}x{n}x{n}", {"torch": lambda x=symmetric: torch.linalg.eigh(x)})
    n, columns = (16, 4) if bench.check else (8192, 256)
    positive = _gram(bench, 1, n)[0]
    factor = torch.linalg.cholesky(positive)
    solve = functools.partial(torch.linalg.solve_triangular, factor, positive, upper=False)
    _time(bench, "cholesky float64", f"{n}x{n}", {"torch": lambda: torch.linalg.cholesky(positive)})
    _time(bench, "triangular solve float64", f"{n}x{n}", {"torch": solve})
    single, block = positive.float(), positive[:, :columns].float().contiguous()
    _time(bench, "product float32", f"{n}x{n}x{columns}", {"torch": lambda: single @ block})
    m = 24 if bench.check else 28672
    tall = torch.randn(m, n, dtype=torch.float64, device=bench.device)
    _time(bench, "gram float64", f"{m}x{n}", {"torch": lambda: tall.mT @ tall})


def products(bench: Bench) -> None:
    """Time and check split products, whole, symmetric and narrow, also with half as many promotions."""
    chosen = Products.on(bench.device)
    longer = replace(chosen, chunk=2 * chosen.chunk)
    kept = contextlib.nullcontext()
    compared = {f"fastmerge, chunk {chosen.chunk}": (chosen, kept), f"fastmerge, chunk {longer.chunk}": (longer, kept)}
    if chosen.maker is not None and chosen.maker.on_hopper(bench.device):
        # The kernel of other GPUs, of which the figures until November 2026 are.
        patch = mock.patch.object(chosen.maker, "on_hopper", lambda device: False)
        compared[f"fastmerge, Triton, chunk {chosen.chunk}"] = chosen, patch
    for m, n in ((24, 16),) if bench.check else PRODUCTS:
        x = make_deltas(Case(1, m, n), bench.device)
        # Of some columns: all of them in float64 would take as long as the experiment.
        exact = x[..., :64].double().mT @ x.double()
        for columns, op in ((n, ""), (n, ", symmetric"), *((min(n, few), ", narrow") for few in NARROW)):
            ways, errors = {}, {}
            for tool, (maker, patch) in compared.items():
                operand, block = maker.operand(x), maker.operand(x[..., :columns].contiguous())
                call = (maker.gram, operand) if op == ", symmetric" else (maker.multiply, operand.mT, block)
                ways[tool] = functools.partial(_under, patch, functools.partial(*call))
            for tool, way in ways.items():
                result = way()
                assert isinstance(result, Tensor)
                some = exact[..., :columns]
                errors[tool] = float((result[:, :64].double() - some).norm() / some.norm())
            _time(bench, f"split product{op}", f"{n}x{m}x{columns}", ways, errors)


def factors(bench: Bench) -> None:
    """Time the polar factor, and count the directions that are repaired."""
    maker = Products.on(bench.device)
    for m, n in ((32, 24),) if bench.check else FACTORED:
        x = make_deltas(Case(1, m, n), bench.device)
        wide = x.double()
        squares, v = torch.linalg.eigh(wide.mT @ wide)
        exact = ((wide @ (v / squares.sqrt().unsqueeze(-2))) @ v.mT).float()
        del wide, v
        way = functools.partial(factored, x, True, maker)
        with mock.patch.object(_polar, "_judged", wraps=_polar._judged) as judged:
            given = way()
            repaired = int((_polar._judged(*judged.call_args.args).gains != 0).sum())
        error = float((given.p.whole - exact).norm() / exact.norm())
        print(f"{m}x{n}: {repaired} directions repaired, {given.infos[0].iterations} steps", flush=True)
        ways = {"fastmerge": way}
        _time(bench, "polar_factor alone", f"{m}x{n}", ways, {"fastmerge": error}, {"fastmerge": repaired})


def searches(bench: Bench) -> None:
    """Compare k and the cut of four spectra with those of float64, and time the search."""
    n = 24 if bench.check else SEARCHED
    maker = Products.on(bench.device)
    for spectrum, x in spectra(n, bench.device).items():
        _, (k,) = gram64(x)
        exact = torch.linalg.eigvalsh(x.double().mT @ x.double())[0].flip(-1).clamp(min=0).sqrt()
        given = factored(x, True, maker)
        if not all(given.accepted):
            print(f"{spectrum}: the certificate failed, and the exact route takes over: {given.infos}", flush=True)
            continue
        info = raised(given, [Boost(BETA)])[1][0]
        assert info.k == k and info.cut is not None, f"{spectrum}: cuts at {info.k}, not {k}"
        error = abs(info.cut - float(exact[k])) / float(exact[k])
        way = {"fastmerge": lambda given=given: raised(given, [Boost(BETA)])}
        _time(bench, f"leading_triplets, {spectrum}", f"{n}x{n}", way, {"fastmerge": error}, {"fastmerge": k})


def spectra(n: int, device: torch.device) -> dict[str, Tensor]:
    """Return [1, n, n] matrices of four kinds."""
    generator = torch.Generator(device).manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    base, rank = (0.02 * normal(n, n)).bfloat16(), max(1, n // 32)
    adapters = sum(0.01 * normal(n, rank) @ normal(rank, n) / rank**0.5 for _ in range(4))
    values = torch.arange(1, n + 1, device=device) ** -1.0
    left, right = torch.linalg.qr(normal(n, n)).Q, torch.linalg.qr(normal(n, n)).Q
    return {
        "bfloat16 difference": make_deltas(Case(1, n, n), device),
        "adapters": ((base.float() + adapters).bfloat16().float() - base.float()).unsqueeze(0),
        "power law": (0.05 * (left * values) @ right.mT).unsqueeze(0),
        "gaussian": (0.001 * normal(n, n)).unsqueeze(0),
    }


def batches(bench: Bench) -> None:
    """Time batches of small matrices; count launches and waits."""
    maker = Products.on(bench.device)
    for case in (Case(3, 32, 24),) if bench.check else BATCHES:
        x = make_deltas(case, bench.device)
        boost = functools.partial(_boosted, x, maker)
        boost()
        if bench.on_gpu:
            activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
            with torch.profiler.profile(activities=activities) as profile:
                boost()
                bench.synchronize()
            counts = {event.key: event.count for event in profile.key_averages()}
            launches, waits = (sum(counts.get(key, 0) for key in keys) for keys in (LAUNCHES, WAITS))
            print(f"{case.shape}: {launches} launches, {waits} waits", flush=True)
        one = functools.partial(_one_by_one, x, maker)
        _time(bench, "subspace_boost, batch", case.shape, {"fastmerge": boost, "fastmerge loop": one})


def _boosted(x: Tensor, maker: Products) -> object:
    return raised(factored(x, True, maker), [Boost(BETA)] * len(x))


def _one_by_one(x: Tensor, maker: Products) -> None:
    for i in range(len(x)):
        _boosted(x[i : i + 1], maker)


def _under(patch: contextlib.AbstractContextManager, run: Callable[[], object]) -> object:
    with patch:
        return run()


def _gram(bench: Bench, batch: int, n: int) -> Tensor:
    x = torch.randn(batch, 2 * n, n, dtype=torch.float64, device=bench.device)
    return x.mT @ x


def _time(
    bench: Bench, op: str, shape: str, ways: Ways, errors: Mapping[str, float] | None = None,
    counts: Mapping[str, int] | None = None,
) -> None:  # fmt: skip
    """Time ways in turns, and append a row for each."""
    turns: Sequence[float] = (0, 0.0) if bench.check else (RUNS, BUDGET, BUDGET)
    samples = _measure.take_turns({tool: bench.on_wall(way) for tool, way in ways.items()}, int(turns[0]), *turns[1:])
    errors, counts = errors or {}, counts or {}
    columns = {
        tool: {**_measure.time_columns(seconds), "error": errors.get(tool, 0.0), "rank": counts.get(tool, 0)}
        for tool, seconds in samples.items()
    }
    append(bench, op, shape, columns)
