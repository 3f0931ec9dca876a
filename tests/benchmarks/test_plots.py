"""The chart of GPU timings, from rows that are made up."""

from __future__ import annotations

import csv
import sys

import pytest

from benchmarks import _record

pytest.importorskip("matplotlib")


def test_gpu_chart(tmp_path, monkeypatch):
    from benchmarks import plots

    facts = dict.fromkeys(_record.GPU_COLUMNS, "1") | {"date": "2026-01-01T00:00:00Z", "device": "a GPU"}
    rows = [
        facts
        | {"op": op, "tool": tool, "backend": backend, "shape": plots.GPU_ELEMENTS, "dtype": "bfloat16", "models": 4}
        for op, tool, backend in (
            ("gram", "fastmerge", "cuda"),
            ("gram", "fastmerge", "triton"),
            ("ties", "fastmerge", "cuda"),
            ("ties", "torch.compile", ""),
            ("ties", "mergekit", ""),
        )
    ]
    with (tmp_path / "gpu.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, _record.GPU_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    monkeypatch.setattr(sys, "argv", ["plots", "--data", str(tmp_path), "--out", str(tmp_path)])
    plots.main()
    assert [path.name for path in tmp_path.glob("*.png")] == ["gpu.png"]


def test_no_rows_no_chart(tmp_path, monkeypatch):
    from benchmarks import plots

    monkeypatch.setattr(sys, "argv", ["plots", "--data", str(tmp_path), "--out", str(tmp_path)])
    plots.main()
    assert not list(tmp_path.glob("*.png"))
