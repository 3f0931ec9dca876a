"""The benchmark of spectral operations, on the CPU: rows for every way, and no row for a wrong result."""

from __future__ import annotations

import csv

import pytest
import torch

from benchmarks.gpu import spectral
from benchmarks.gpu.timing import Bench


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
    assert {row["op"] for row in found} == {"subspace_boost", "subspace_boost, 70B", "subspace_boost, experts"}
    assert {row["shape"] for row in found} == {"32x16", "2x32x24", "160 of 32x16", "288 of 2x32x24"}
    assert {row["tool"] for row in found} == {"fastmerge", "fastmerge fast", "torch", "torch gesvd", "torch gram64"}
    assert all(0 <= float(row["error"]) < 5e-3 and float(row["ms"]) > 0 for row in found)
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


@pytest.mark.parametrize("tool, factor", [("fastmerge", 1 + 1e-5), ("fastmerge fast", 1.01)])
def test_a_wrong_result_is_refused(bench, monkeypatch, tool, factor):
    ways = spectral.ways(check=True)
    way = ways[tool]
    ways[tool] = lambda x: (factor * way(x)[0], way(x)[1])
    with pytest.raises(AssertionError, match=f"32x16: {tool} is off by"):
        spectral.verify(ways, spectral.CHECK_CASES[0], bench)
    ways[tool] = lambda x: (way(x)[0], [5] * len(x))
    with pytest.raises(AssertionError, match=f"32x16: {tool} cuts at"):
        spectral.verify(ways, spectral.CHECK_CASES[0], bench)


def test_ways_agree_on_deltas_as_they_are_verified_on_a_gpu(bench):
    spectral.verify(spectral.ways(check=True), spectral.VERIFIED[1], bench)
    assert torch.equal(*(spectral.make_deltas(spectral.VERIFIED[1], bench.device) for _ in range(2)))
