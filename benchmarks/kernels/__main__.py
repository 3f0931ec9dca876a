"""Time the inner functions: ``python -m benchmarks.kernels``. Verifies first, then times all contenders in turns."""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastmerge import kernels
from fastmerge.kernels import _native

from .. import _measure, _record
from .cases import CASES, Case, make_tensors
from .plain_torch import MERGES

# Odd, so that the last vector of a loop is a partial one, and more than one chunk of the reduction grid.
VERIFY_ELEMENTS = 64 * kernels.GRID + 12345
COPY_BYTES = 128 << 20


class MergekitPeer:
    """mergekit in its own interpreter, on the same tensors."""

    def __init__(self, python: str, tensors: list[Tensor], threads: int, folder: Path, device: str = "cpu"):
        path = folder / "tensors.safetensors"
        save_file({str(i): tensor for i, tensor in enumerate(tensors)}, path)
        worker = Path(__file__).with_name("mergekit_worker.py")
        self.process = subprocess.Popen(
            [python, worker, path, str(threads), device], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()
        path.unlink()

    def merge(self, case: Case, save: Path | None = None) -> float:
        """Merge once and return the seconds that mergekit's function took."""
        request = {
            "method": case.method, "parameters": case.values, "inputs": case.inputs,
            "base_index": 0 if case.has_base else None, "columns": case.columns, "save": str(save) if save else None,
        }  # fmt: skip
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("mergekit's worker ended early; its error is above")
        return line


def verify(case: Case, mergekit_python: str | None, threads: int) -> None:
    """Raise AssertionError unless all backends give the same bits and the peers the same merge up to their rounding."""
    tensors = case.shaped(make_tensors(VERIFY_ELEMENTS, seed=1))
    out, expected = torch.full_like(tensors[0], torch.nan), torch.full_like(tensors[0], torch.nan)
    case.run(out, tensors)
    with kernels.use_backend("reference"):
        case.run(expected, tensors)
    assert torch.equal(out, expected), f"{case.method}: the backend differs from the reference"
    results = {"torch": MERGES[case.method](tensors[: case.inputs], **case.values)}
    if mergekit_python:
        with tempfile.TemporaryDirectory() as folder:
            peer, saved = (
                MergekitPeer(mergekit_python, tensors, threads, Path(folder)),
                Path(folder) / "out.safetensors",
            )
            peer.merge(case, save=saved)
            peer.close()
            results["mergekit"] = load_file(saved)["merged"].clone()
    check_peers(case.method, tensors[0], out, results)


def check_peers(method: str, base: Tensor, out: Tensor, results: Mapping[str, Tensor]) -> None:
    """Raise AssertionError unless the results of the peers, by tool, lie about as far from the base as ``out`` does.

    The peers round every step to bfloat16, break ties and draw random numbers in their own way, so that single
    elements differ and rounding adds some per cent to the size of what was added to the base.
    """
    size = (out.float() - base).norm()
    for tool, result in results.items():
        other = (result.float() - base).norm()
        assert abs(other - size) < 0.1 * size, (
            f"{method}: {tool} moves the base by {other:.4g}, fastmerge by {size:.4g}"
        )


def measure(
    case: Case, tensors: list[Tensor], peer: MergekitPeer | None, threads: int, runs: int, budget: float
) -> list[dict[str, object]]:
    """Time fastmerge, plain PyTorch, mergekit and the copy in turns; return one row per tool."""
    out = torch.empty_like(tensors[0])
    contenders = {
        "fastmerge": _measure.timed(lambda: case.run(out, tensors)),
        **_measure.copy_contenders(COPY_BYTES, threads),
        "torch": _measure.timed(lambda: MERGES[case.method](tensors[: case.inputs], **case.values)),
    }
    if peer:
        contenders["mergekit"] = lambda: peer.merge(case)
    samples = _measure.take_turns(contenders, runs, budget)
    times = {name: _measure.time_columns(seconds) for name, seconds in samples.items()}
    copy_gbps = max(2e-6 * COPY_BYTES / times[name]["ms"] for name in times if name.startswith("copy"))
    elements, itemsize = out.numel(), out.element_size()
    backend, _ = kernels.OPERATIONS["weighted_sum"].choose("cpu")
    if backend == "cpu":
        backend = f"cpu {_native.cpu_extension().isa()}"
    rows = []
    for tool in ("fastmerge", "torch", "mergekit"):
        if tool not in times:
            continue
        moved, once = case.bytes_moved(elements, itemsize), case.bytes_once(elements, itemsize)
        gbps, gbps_once = 1e-6 * moved / times[tool]["ms"], 1e-6 * once / times[tool]["ms"]
        rows.append({
            "op": case.method, "tool": tool, "backend": backend if tool == "fastmerge" else "", "shape": elements,
            "dtype": "bfloat16", "models": case.inputs, **times[tool],
            "bytes": moved, "gbps": gbps, "fraction": gbps / copy_gbps,
            "bytes_once": once, "gbps_once": gbps_once, "fraction_once": gbps_once / copy_gbps,
            "copy_gbps": copy_gbps, "ratio": times[tool]["ms"] / times["fastmerge"]["ms"],
        })  # fmt: skip
    return rows


def set_threads(count: int) -> None:
    """Set the threads of torch and of the compiled backend, where there is one."""
    torch.set_num_threads(count)
    if _native.why_no_cpu_extension() is None:
        _native.cpu_extension().set_threads(count)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--ops", nargs="+", default=[case.method for case in CASES], help="default: all")
    parser.add_argument("--millions", nargs="+", type=int, default=[16, 64], help="elements per tensor, times 2**20")
    parser.add_argument("--threads", nargs="+", type=int, default=[torch.get_num_threads()])
    parser.add_argument(
        "--mergekit-python", metavar="PATH", help="interpreter that has mergekit; without it no such rows"
    )
    parser.add_argument("--runs", type=int, default=15, help="most runs of each contender")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of runs after which a contender stops")
    parser.add_argument("--csv", type=Path, default=_record.DATA / "kernels.csv")
    options = parser.parse_args()
    cases = [case for case in CASES if case.method in options.ops]
    mergekit = _record.mergekit_version(options.mergekit_python)
    for threads in options.threads:
        set_threads(threads)
        facts = _record.run_facts(threads, mergekit)
        for case in cases:
            verify(case, options.mergekit_python, threads)
        for elements in (m << 20 for m in options.millions):
            tensors = make_tensors(elements)
            with tempfile.TemporaryDirectory() as folder:
                python = options.mergekit_python
                peer = MergekitPeer(python, tensors, threads, Path(folder)) if python else None
                for case in cases:
                    rows = measure(case, case.shaped(tensors), peer, threads, options.runs, options.budget)
                    _record.append(options.csv, _record.KERNEL_COLUMNS, [facts | row for row in rows])
                    for row in rows:
                        print(_line(row), flush=True)
                if peer:
                    peer.close()


def _line(row: dict[str, object]) -> str:
    return (
        f"{row['op']:10} {row['tool']:10} {row['shape'] >> 20:3}M {row['ms']:10.1f} ms ({row['runs']} runs) "
        f"{row['gbps']:6.2f} GB/s = {row['fraction']:5.2f} of copy ({row['copy_gbps']:.1f}), "
        f"bytes once {row['fraction_once']:5.2f}, {row['ratio']:7.1f} x fastmerge"
    )


if __name__ == "__main__":
    main()
