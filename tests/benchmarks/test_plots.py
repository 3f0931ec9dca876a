"""The chart of GPU timings, from rows that are made up."""

from __future__ import annotations

import csv
import sys

import pytest

from benchmarks import _record

pytest.importorskip("matplotlib")


def test_gpu_chart(tmp_path, monkeypatch):
    from benchmarks import plots

    facts = dict.fromkeys(_record.KERNEL_COLUMNS, "1") | {"date": "2026-01-01T00:00:00Z", "device": "a GPU"}
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
        writer = csv.DictWriter(file, _record.KERNEL_COLUMNS)
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


def test_figures_are_medians_of_all_commands_of_the_last_commit(tmp_path):
    from benchmarks import _rows, tables

    path = tmp_path / "kernels.csv"
    facts = dict.fromkeys(_record.KERNEL_COLUMNS, "1") | {"device": "a CPU", "op": "ties", "shape": str(64 << 20)}
    measured = [("old", "fastmerge", 900, 1), *(("new", "fastmerge", ms, 1) for ms in (100, 90, 120))]
    measured += [("new", "mergekit", ms, ratio) for ms, ratio in ((20000, 200), (18000, 190), (30000, 250))]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, _record.KERNEL_COLUMNS)
        writer.writeheader()
        for commit, tool, ms, ratio in measured:
            writer.writerow(facts | {"commit": commit, "tool": tool, "ms": ms, "ratio": ratio, "fraction": 50 / ms})
    own, peer = _rows.read(path)
    assert (own["commands"], own["ms"], own["ms_low"], own["ms_high"]) == ("3", "100", "90", "120")
    assert (peer["ratio"], peer["ratio_low"], peer["ratio_high"]) == ("200", "190", "250")
    [lines] = tables.tables([own, peer])
    assert lines[-1] == "| ties | 100 (90.0 to 120) ms | 0.5 (0.42 to 0.56) | 200 (190 to 250)x |"
    assert _rows.read(path, "another") == [] == _rows.read(tmp_path / "missing.csv")
