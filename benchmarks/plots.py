"""Draw the charts of the README from the CSV files: ``python -m benchmarks.plots``. Needs matplotlib."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import _record

Row = dict[str, str]

COLORS = {"fastmerge": "#1f6feb", "torch": "#9aa4b2", "torch.compile": "#5c6773", "mergekit": "#d9822b"}
LABELS = {"fastmerge": "fastmerge", "torch": "plain PyTorch", "torch.compile": "compiled", "mergekit": "mergekit"}
BACKENDS = {"cuda": "#1f6feb", "triton": "#8957e5"}
SHAPES = {"llama-0.5b": "0.55B parameters", "llama-1b": "1.2B parameters", "llama-tiny": "7,203 tiny tensors"}
OPS = ("linear", "slerp", "ties", "dare_ties", "della")
BAR = 0.8
GPU_ELEMENTS = 64 << 20


def read(path: Path, keys: Sequence[str]) -> list[Row]:
    """Return the rows of the CSV file; of those that agree in ``keys``, the last, and only those of the last device."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    latest = {tuple(row[key] for key in keys): row for row in rows if row["device"] == rows[-1]["device"]}
    return list(latest.values())


def draw_kernels(rows: list[Row]) -> Figure:
    """Draw how much of the copy bandwidth each inner function reaches, for the largest tensors and most threads."""
    rows = [row for row in rows if row["shape"] == max((r["shape"] for r in rows), key=int)]
    rows = [row for row in rows if row["threads"] == max((r["threads"] for r in rows), key=int)]
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    _bars(axes, rows, "fraction")
    axes.axvline(1, color="black", linewidth=1, linestyle="--")
    axes.text(1, -0.62, "memory copy", ha="center", va="bottom", fontsize=9)
    axes.set_xlim(0, max(1.15, 1.35 * max(float(row["fraction"]) for row in rows)))
    axes.set_xlabel(f"bytes moved per second, as a fraction of a memory copy in the same run\n{_facts(rows)}")
    size = f"{int(rows[0]['shape']) >> 20}M elements"
    axes.set_title(
        f"Merging a base and three experts in memory, {size} each, bfloat16", loc="left", pad=22, fontsize=11
    )
    _legend(figure, axes, rows)
    return figure


def draw_gpu(rows: list[Row]) -> Figure:
    """Draw the share of a copy's speed that each kernel reaches, and the time of each method beside other tools."""
    rows = [row for row in rows if row["dtype"] == "bfloat16" and row["shape"] == str(GPU_ELEMENTS)]
    kernels = [
        row for row in rows if row["op"] not in OPS and row["backend"] in BACKENDS and row["models"] in ("3", "4")
    ]
    methods: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = row["op"], row["tool"]
        if row["op"] in OPS and (key not in methods or float(row["ms"]) < float(methods[key]["ms"])):
            methods[key] = row
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.2), layout="constrained")
    names = list(dict.fromkeys(row["op"] for row in kernels))
    for row in kernels:
        y = names.index(row["op"]) + (list(BACKENDS).index(row["backend"]) - 0.5) * BAR / 2
        left.barh(y, float(row["fraction"]), BAR / 2 * 0.9, color=BACKENDS[row["backend"]])
    left.axvline(1, color="black", linewidth=1, linestyle="--")
    left.set_xlim(0, 1.3)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.spines[["top", "right"]].set_visible(False)
    left.set_xlabel("bytes moved per second, as a fraction of a copy on the device")
    left.set_title("Kernels", loc="left", fontsize=11)
    left.legend(
        [plt.Rectangle((0, 0), 1, 1, color=color) for color in BACKENDS.values()],
        BACKENDS,
        frameon=False,
        loc="lower right",
    )
    _bars(right, list(methods.values()), "ms")
    right.set_xscale("log")
    right.xaxis.set_major_formatter(lambda value, _: _duration(1e3 * value))
    right.set_xlabel(f"time of one merge, logarithmic\n{rows[-1]['device']}, {rows[-1]['date'][:10]}")
    right.set_title("Methods, the faster backend", loc="left", fontsize=11)
    figure.suptitle(
        f"A base and three experts on a GPU, {GPU_ELEMENTS >> 20}M elements each, bfloat16", x=0.01, ha="left"
    )
    _legend(figure, right, list(methods.values()))
    return figure


def draw_merges(rows: list[Row]) -> Figure:
    """Draw the time of whole merges per shape and method, beside the bare cost of moving their bytes."""
    shapes = [shape for shape in SHAPES if any(row["shape"] == shape for row in rows)]
    figure, panels = plt.subplots(
        1, len(shapes), figsize=(5 * len(shapes) + 1, 4.4), layout="constrained", squeeze=False, sharex=True
    )
    for axes, shape in zip(panels[0], shapes, strict=True):
        part = [row for row in rows if row["shape"] == shape and row["op"] in OPS and row["tool"] in COLORS]
        _bars(axes, part, "ms")
        for i, op in enumerate(op for op in OPS if any(row["op"] == op for row in part)):
            bare = next(float(row["bare_ms"]) for row in part if row["op"] == op) / 1e3
            axes.plot([bare, bare], [i - BAR / 2, i + BAR / 2], color="black", linewidth=1.6, label="bare cost")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")
        axes.set_title(SHAPES[shape], loc="left", fontsize=11)
    panels[0][0].set_xlabel(
        f"wall time with the start of the program and fsync, logarithmic\n{_facts(rows)}", loc="left"
    )
    low = min(float(row[key]) for row in rows for key in ("ms", "bare_ms") if row["tool"] in COLORS and row["bare_ms"])
    high = max(float(row["ms"]) for row in rows)
    panels[0][0].set_xlim(low / 2e3, high / 2e2)
    figure.suptitle("Merging a base and three fine-tunes, disk to disk (slerp: two models)", x=0.01, ha="left")
    _legend(figure, panels[0][0], rows, line="bare read and write")
    return figure


def _bars(axes: Axes, rows: list[Row], column: str) -> None:
    """Draw one group of horizontal bars per method, one bar per tool, each with its time at its end."""
    ops = [op for op in OPS if any(row["op"] == op for row in rows)]
    tools = [tool for tool in COLORS if any(row["tool"] == tool for row in rows)]
    height = BAR / len(tools)
    for row in rows:
        if row["tool"] not in tools or row["op"] not in ops:
            continue
        value = float(row[column]) / (1e3 if column == "ms" else 1)
        y = ops.index(row["op"]) - BAR / 2 + (tools.index(row["tool"]) + 0.5) * height
        axes.barh(y, value, height * 0.9, color=COLORS[row["tool"]])
        axes.annotate(
            _duration(float(row["ms"])), (value, y), (4, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.set_yticks(range(len(ops)), ops)
    axes.set_ylim(len(ops) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)


def _duration(ms: float) -> str:
    if ms < 999.5:
        return f"{ms:.3g} ms"
    return f"{ms / 1e3:.3g} s" if ms < 99950 else f"{ms / 1e3:.0f} s"


def _legend(figure: Figure, axes: Axes, rows: Iterable[Row], line: str = "") -> None:
    """Put the legend, with versions, below the chart."""
    rows = list(rows)
    tools = [tool for tool in COLORS if any(row["tool"] == tool for row in rows)]
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLORS[tool]) for tool in tools]
    labels = [LABELS[tool] + (f" {_version(rows, tool)}") for tool in tools]
    if line:
        handles.append(plt.Line2D([], [], color="black", linewidth=1.6))
        labels.append(line)
    figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), frameon=False, fontsize=9)


def _facts(rows: list[Row]) -> str:
    """Say where and when it was measured."""
    return f"{rows[-1]['device']}, {rows[-1]['threads']} threads, {rows[-1]['date'][:10]}"


def _version(rows: list[Row], tool: str) -> str:
    return next((row[tool] for row in reversed(rows) if row.get(tool)), "")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("--data", type=Path, default=_record.DATA, help="folder of kernels.csv, merge.csv and gpu.csv")
    parser.add_argument("--out", type=Path, default=_record.ROOT / "docs")
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    charts = {
        "kernels.csv": (draw_kernels, ("op", "tool", "shape", "threads")),
        "merge.csv": (draw_merges, ("op", "tool", "shape", "cache", "output")),
        "gpu.csv": (draw_gpu, ("op", "tool", "backend", "shape", "dtype", "models")),
    }
    for name, (draw, keys) in charts.items():
        if (options.data / name).exists():
            path = options.out / name.replace(".csv", ".png")
            draw(read(options.data / name, keys)).savefig(path, dpi=160)
            print(path)


if __name__ == "__main__":
    main()
