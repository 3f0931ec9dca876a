"""Print tables of the README from the CSV files: ``python -m benchmarks.tables``. Medians, with the range of runs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from . import _record
from ._rows import Row, read
from .kernels.cases import CASES

OPS = ("start", *(case.method for case in CASES))
TOOLS = ("torch", "torch.compile", "mergekit")
BEGIN, END = "<!-- speed: begin -->\n", "<!-- speed: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--data", type=Path, default=_record.DATA, help="folder of kernels.csv, merge.csv and gpu.csv")
    parser.add_argument("--device", help="part of the name of a device; by default that of the last row")
    parser.add_argument("--update", type=Path, metavar="PAGE", help="write the tables of methods.csv into a page")
    options = parser.parse_args()
    for name in ("kernels", "merge", "gpu", "methods"):
        every = name == "methods"
        found = [*tables(read(options.data / f"{name}.csv", options.device), None if every else OPS)]
        text = "".join("\n".join(lines) + "\n\n" for lines in found)
        print(text, end="")
        if every and options.update:
            before, _, rest = options.update.read_text().partition(BEGIN)
            options.update.write_text(before + BEGIN + "\n" + text + END + rest.partition(END)[2])


def tables(rows: Sequence[Row], ops: Sequence[str] | None = OPS) -> Iterator[list[str]]:
    """Yield a Markdown table per shape, number of threads and state of the cache: methods down, tools across.

    Args:
        ops: methods that are shown; None: all.
    """
    groups: dict[tuple[str, ...], dict[str, list[Row]]] = {}
    for row in (row for row in rows if ops is None or row["op"] in ops):
        key = tuple(row.get(column, "") for column in ("device", "commit", "shape", "threads", "cache"))
        groups.setdefault(key, {}).setdefault(row["op"], []).append(row)
    for key, methods in groups.items():
        peers = [tool for tool in TOOLS if any(row["tool"] == tool for found in methods.values() for row in found)]
        if not peers:
            continue
        device, commit, shape, threads, cache = key
        size = f"{int(shape) >> 20}M elements" if shape.isdigit() else shape
        facts = [device, f"{threads} threads", size, *([f"{cache} cache"] if cache else []), f"commit {commit}"]
        shares = any("fraction" in row for found in methods.values() for row in found)
        head = ["method", "fastmerge", *(["of a copy"] if shares else ["times the bare cost"]), *peers]
        yield [
            ", ".join(facts), "", f"| {' | '.join(head)} |", "|---" * len(head) + "|",
            *(_line(op, found, shares, peers) for op, found in methods.items() if len({r["tool"] for r in found}) > 1),
        ]  # fmt: skip


def _line(op: str, rows: Sequence[Row], shares: bool, peers: Sequence[str]) -> str:
    fastest = {row["tool"]: row for row in sorted(rows, key=lambda row: -float(row["ms"]))}
    own = fastest["fastmerge"]
    beside = _figure(own, "fraction" if shares else "times_bare", 2)
    against = [_figure(_over(fastest[tool], own), "ratio", 1) + "x" if tool in fastest else "" for tool in peers]
    return f"| {' | '.join([op, _figure(own, 'ms', 1) + ' ms', beside, *against])} |"


def _over(row: Row, own: Row) -> Mapping[str, str]:
    """Return how many times as long a peer took as fastmerge's fastest backend, with the range of the runs' ratios."""
    scale = float(row["ms"]) / float(own["ms"]) / float(row["ratio"])
    return {key: f"{float(row[key]) * scale:.6g}" for key in ("ratio", "ratio_low", "ratio_high")}


def _figure(row: Mapping[str, str], column: str, digits: int) -> str:
    """Return a median, and the range of several runs in brackets."""

    def text(name: str) -> str:
        value = float(row[name])
        return f"{value:.0f}" if value >= 99.5 else f"{value:.{digits}f}" if value >= 1 else f"{value:.2g}"

    if not row.get(column):
        return ""
    middle, low, high = (text(column + suffix) for suffix in ("", "_low", "_high"))
    return middle if low == high else f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
