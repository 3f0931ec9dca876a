"""CSV rows: what is recorded beside every measurement, and how rows are appended. README.md describes the columns."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(__file__).resolve().parent / "data"

RUN_COLUMNS = ("date", "commit", "device", "threads", "fastmerge", "torch", "mergekit")
TIME_COLUMNS = ("runs", "ms", "ms_q20", "ms_q80")
MERGE_COLUMNS = (
    *RUN_COLUMNS, "op", "tool", "backend", "shape", "dtype", "models", "tensors", "cache", "output",
    *TIME_COLUMNS, "cpu_ms", "peak_rss_mb", "bytes_read", "bytes_written", "startup_ms",
    "bare_ms", "times_bare", "times_bare_net", "ratio",
)  # fmt: skip
KERNEL_COLUMNS = (
    *RUN_COLUMNS, "op", "tool", "backend", "shape", "dtype", "models", *TIME_COLUMNS,
    "bytes", "gbps", "fraction", "bytes_once", "bound", "bound_gbps", "times_bound", "ratio",
)  # fmt: skip
SPECTRAL_COLUMNS = (*RUN_COLUMNS, "op", "tool", "shape", "rank", "dtype", *TIME_COLUMNS, "error", "ratio")


def run_facts(threads: int, mergekit: str = "") -> dict[str, object]:
    """Return what all rows of a run share: date, commit, machine and versions."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": _commit(),
        "device": cpu_description(),
        "threads": threads,
        "fastmerge": importlib.metadata.version("fastmerge"),
        "torch": importlib.metadata.version("torch"),
        "mergekit": mergekit,
    }


def mergekit_version(python: str | None) -> str:
    """Return the version of mergekit that ``python`` imports, or "" when no interpreter is given."""
    if python is None:
        return ""
    code = "import importlib.metadata as m; print(m.version('mergekit'))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def cpu_description() -> str:
    """Return the CPU's name, its widest instruction set, and how many cores this process may use."""
    name, flags = platform.processor() or platform.machine(), set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        facts = dict(
            (part.strip() for part in line.split(":", 1)) for line in cpuinfo.read_text().splitlines() if ":" in line
        )
        family = f" (family {facts['cpu family']} model {facts['model']})" if "cpu family" in facts else ""
        name, flags = facts.get("model name", name) + family, set(facts.get("flags", "").split())
    isa = next((isa for isa in ("avx512bw", "avx2", "sse4_2") if isa in flags), platform.machine())
    return f"{name}, {isa}, {len(os.sched_getaffinity(0))} cores"


def append(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Append rows to the CSV file ``path``; a new file gets its header line.

    Raises:
        ValueError: the file has other columns, or a row lacks one or has one too many.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        header = path.read_text().partition("\n")[0].split(",")
        if header != list(columns):
            raise ValueError(f"{path} has the columns {header}; expected {list(columns)}; move the file away")
    else:
        path.write_text(",".join(columns) + "\n")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        for row in rows:
            if set(row) != set(columns):
                raise ValueError(f"columns of a row differ from those of {path.name}: {set(row) ^ set(columns)}")
            writer.writerow({key: _text(value) for key, value in row.items()})


def _text(value: object) -> str:
    return (
        f"{value:.4g}"
        if isinstance(value, float) and abs(value) < 1000
        else str(round(value) if isinstance(value, float) else value)
    )


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    if shutil.which("git") is None:
        return "unknown"
    # Only what is measured counts as a change; the CSV itself grows during a run.
    changed = git("status", "--porcelain", "--", "csrc", "kernels", "fastmerge", "benchmarks/*.py")
    return (git("rev-parse", "--short=10", "HEAD") or "unknown") + ("+changes" if changed else "")
