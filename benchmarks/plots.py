"""Draw the charts of README and docs/speed.md from the CSV files: ``python -m benchmarks.plots``. Needs matplotlib."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import _record
from ._rows import Row, read
from .inventory import BY_NAME

COLORS = {"fastmerge": "#1f6feb", "torch": "#9aa4b2", "torch.compile": "#5c6773", "mergekit": "#d9822b"}
LABELS = {"fastmerge": "fastmerge", "torch": "plain PyTorch", "torch.compile": "compiled", "mergekit": "mergekit"}
BACKENDS = {"cuda": "#1f6feb", "triton": "#8957e5"}
SHAPES = {"llama-0.5b": "0.55B parameters", "llama-1b": "1.2B parameters", "llama-tiny": "7,203 tiny tensors"}
OPS = ("linear", "slerp", "ties", "dare_ties", "della")
BAR = 0.8
GPU_ELEMENTS = 64 << 20


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
        row
        for row in rows
        if row["op"] in BY_NAME
        and row["backend"] in BACKENDS
        and row["models"] == ("4" if BY_NAME[row["op"]].based else "3")
    ]
    methods: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = row["op"], row["tool"]
        if row["op"] in OPS and (key not in methods or float(row["ms"]) < float(methods[key]["ms"])):
            methods[key] = row
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.2), layout="constrained")
    names = list(dict.fromkeys(row["op"] for row in kernels))
    for row in kernels:
        share = float(row["fraction"])
        y = names.index(row["op"]) + (list(BACKENDS).index(row["backend"]) - 0.5) * BAR / 2
        left.barh(y, share, BAR / 2 * 0.9, color=BACKENDS[row["backend"]])
        # Inside of bars that end near the line of the copy.
        side, ink = ("right", "white") if share > 0.8 else ("left", "black")
        offset = -4 if side == "right" else 4
        left.annotate(
            f"{share:.2f}", (share, y), (offset, 0), textcoords="offset points", va="center", ha=side, color=ink,
            fontsize=8,
        )  # fmt: skip
    left.axvline(1, color="black", linewidth=1, linestyle="--")
    left.text(1, -0.62, "memory copy", ha="center", va="bottom", fontsize=9)
    left.set_xlim(0, 1.15)
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.5, -0.5)
    left.tick_params(axis="y", length=0)
    left.spines[["top", "right"]].set_visible(False)
    left.set_xlabel("bytes moved per second, as a fraction of a copy on the device")
    left.set_title("Kernels", loc="left", fontsize=11, pad=22)
    bars = [plt.Rectangle((0, 0), 1, 1, color=color) for color in BACKENDS.values()]
    # Where the bars are short.
    left.legend(bars, ("CUDA", "Triton"), frameon=False, loc="center right", bbox_to_anchor=(0.8, 0.28))
    _bars(right, list(methods.values()), "ms")
    right.set_xscale("log")
    right.xaxis.set_major_formatter(lambda value, _: _duration(1e3 * value))
    right.set_xlabel(f"time of one merge, logarithmic\n{rows[-1]['device']}, {rows[-1]['date'][:10]}")
    right.set_title("Methods, with the faster backend", loc="left", fontsize=11, pad=22)
    figure.suptitle(
        f"A base and three experts on a GPU, {GPU_ELEMENTS >> 20}M elements each, bfloat16", x=0.01, ha="left"
    )
    _legend(figure, right, list(methods.values()))
    return figure


def draw_merges(rows: list[Row]) -> Figure:
    """Draw the time of whole merges of cached inputs per shape and method, beside the bare cost of their bytes."""
    rows = [row for row in rows if row["cache"] == "warm"]
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
    figure.suptitle("Merging a base and three fine-tunes, cached inputs to disk", x=0.01, ha="left")
    _legend(figure, panels[0][0], rows, line="bare read and write")
    return figure


def _bars(axes: Axes, rows: list[Row], column: str) -> None:
    """Draw one group of horizontal bars per method, one bar per tool, with its range and, behind both, its time."""
    ops = [op for op in OPS if any(row["op"] == op for row in rows)]
    tools = [tool for tool in COLORS if any(row["tool"] == tool for row in rows)]
    height = BAR / len(tools)
    for row in rows:
        if row["tool"] not in tools or row["op"] not in ops:
            continue
        unit = 1e3 if column == "ms" else 1
        value = end = float(row[column]) / unit
        y = ops.index(row["op"]) - BAR / 2 + (tools.index(row["tool"]) + 0.5) * height
        axes.barh(y, value, height * 0.9, color=COLORS[row["tool"]])
        if int(row["commands"]) > 1:
            low, high = (float(row[f"{column}_{side}"]) / unit for side in ("low", "high"))
            axes.plot([low, high], [y, y], color="black", linewidth=1)
            end = max(value, high)
        axes.annotate(
            _duration(float(row["ms"])), (end, y), (4, 0), textcoords="offset points", va="center", fontsize=9
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
    parser.add_argument("--device", help="part of the name of a device; by default that of the last row")
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    for name, draw in {"kernels": draw_kernels, "merge": draw_merges, "gpu": draw_gpu}.items():
        if rows := read(options.data / f"{name}.csv", options.device):
            path = options.out / f"{name}.png"
            draw(rows).savefig(path, dpi=160)
            print(path)


if __name__ == "__main__":
    main()
