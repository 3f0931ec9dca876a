"""The benchmark of spectral operations, on the CPU: rows for every way, and no row for a wrong result."""

from __future__ import annotations

import csv

import pytest
import torch

from benchmarks._bench import Bench
from benchmarks.gpu import spectral, spectral_pieces


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path / "gpu.csv", check=True)


def rows(bench):
    with bench.csv.with_name("gpu_spectral.csv").open() as file:
        return list(csv.DictReader(file))


def test_rows(bench):
    spectral.run(bench)
    assert bench.failures == 0
    found = rows(bench)
    parts = {"polar_factor", "leading_triplets"}
    assert {row["op"] for row in found} == {"subspace_boost", "subspace_boost, 70B", "subspace_boost, experts", *parts}
    assert {row["shape"] for row in found} == {"32x16", "2x32x24", "160 of 32x16", "288 of 2x32x24"}
    assert {row["tool"] for row in found} == {"fastmerge", "torch", "torch gesvd", "torch gram64"}
    assert all(0 <= float(row["error"]) < 1e-4 and float(row["ms"]) > 0 for row in found)
    single, whole = (
        next(float(row["ms"]) for row in found if row["tool"] == "torch" and row["shape"] == shape)
        for shape in ("32x16", "160 of 32x16")
    )
    assert whole == pytest.approx(160 * single, rel=1e-2)


def test_a_slow_decomposition_is_left_out(bench, monkeypatch):
    monkeypatch.setattr(spectral, "SECONDS", 1e-3)
    spectral.run(bench)
    assert [row["shape"] for row in rows(bench) if row["tool"] == "torch"] == ["32x16", "160 of 32x16"]
    assert [row["shape"] for row in rows(bench) if row["tool"] == "torch gram64"][::2] == ["32x16", "2x32x24"]


def _spoil(ways, tool, spoil):
    way = ways[tool]
    return {**ways, tool: lambda x: spoil(*way(x))}


def test_a_wrong_way_costs_its_own_rows_only(bench, capsys):
    tool, factor = "fastmerge", 1 + 1e-5
    ways, case = spectral.ways(check=True), spectral.CHECK_CASES[0]
    right = spectral.verify(_spoil(ways, tool, lambda result, k: (factor * result, k)), case, bench)
    assert set(right) == set(ways) - {tool} and bench.failures == 1
    assert f"{tool} is off by" in capsys.readouterr().out
    spectral.measure(bench, case, _spoil(ways, tool, lambda result, k: (result, [5] * len(k))))
    assert f"{tool} cuts at" in capsys.readouterr().out
    spectral.measure(bench, case, {**ways, tool: lambda x: 1 / 0})
    assert "division by zero" in capsys.readouterr().out
    assert {row["tool"] for row in rows(bench)} == set(ways) - {tool}


def test_the_limit_of_a_way_does_not_depend_on_its_kernel(bench):
    results = dict.fromkeys(("torch", "fastmerge", "fastmerge, other"), (None, [1]))
    errors = {"torch": 1e-6, "fastmerge": 2e-6, "fastmerge, other": 8e-4}
    assert spectral.right_ones(bench, spectral.CHECK_CASES[0], errors, results, [1]) == ["torch", "fastmerge"]


def test_pieces(bench, capsys):
    spectral_pieces.run(bench)
    assert bench.failures == 0, capsys.readouterr().out
    ops = {row["op"] for row in rows(bench)}
    assert {"eigh float64", "split product, symmetric", "polar_factor alone", "subspace_boost, batch"} < ops
    assert len([op for op in ops if op.startswith("leading_triplets, ")]) >= 3
    assert "directions repaired" in capsys.readouterr().out


def test_ways_agree_on_deltas_as_they_are_verified_on_a_gpu(bench):
    ways = spectral.ways(check=True)
    assert spectral.verify(ways, spectral.VERIFIED[1], bench) == ways
    assert torch.equal(*(spectral.make_deltas(spectral.VERIFIED[1], bench.device) for _ in range(2)))
