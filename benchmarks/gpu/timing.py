"""Times the GPU backends: ``python -m benchmarks.gpu.timing --csv FILE``. Verifies first, then times all contenders.

Copy bandwidth is measured in the same turns. With ``--check`` the same code runs on the CPU, in Triton's interpreter
and on tiny tensors: it tests this program, and its rows say so.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastmerge import kernels
from fastmerge.kernels import _registry, _triton

from .. import _measure, _record
from ..kernels.__main__ import MergekitPeer
from ..kernels.cases import CASES, make_tensors
from ..kernels.cases import Case as Method
from ..kernels.plain_torch import MERGES
from . import cases

# Odd, so that the last block is a partial one, and more than one chunk of the reduction grid.
VERIFY_ELEMENTS = 64 * kernels.GRID + 12345
CHECK_ELEMENTS = 301
RUNS, BUDGET = 20, 0.7


def timed(run: Callable[[], object], device: torch.device) -> _measure.Contender:
    """Return a contender that measures ``run`` on the device's own clock."""
    if device.type == "cpu":
        return _measure.timed(run)

    def measure() -> float:
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return 1e-3 * start.elapsed_time(stop)

    return measure


def dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """Return the dtypes of the operations; the dry run, in the slow interpreter, has one."""
    return (torch.bfloat16,) if device.type == "cpu" else (torch.bfloat16, torch.float32)


class Bench:
    """One run: where it measures, on what, and where its rows go."""

    def __init__(self, device: torch.device, csv: Path, mergekit_python: str | None, check: bool):
        self.device, self.csv, self.mergekit_python, self.check = device, csv, mergekit_python, check
        self.facts = _record.run_facts(torch.get_num_threads(), _record.mergekit_version(mergekit_python))
        name = f"check in Triton's interpreter, {self.facts['device']}" if check else torch.cuda.get_device_name(device)
        self.facts["device"] = name
        import triton

        self.backend = f"triton {triton.__version__}"
        # The dry run tests the wrapping, not inductor.
        self.compile = (lambda f: torch.compile(f, backend="eager")) if check else torch.compile

    def operation(self, case: cases.Case, tensors: Sequence[Tensor]) -> None:
        """Time one operation: this backend, the reference on the same device, and its compiled form."""
        inputs = list(tensors[: case.inputs])
        contenders = {
            "fastmerge": lambda: case.run(inputs, "triton"),
            "torch": lambda: case.run(inputs, "reference"),
        }
        if case.compare:
            compiled = self.compile(lambda: case.run(inputs, "reference"))
            contenders["torch.compile"] = compiled
        moved, once = case.bytes_moved(inputs[0]), case.bytes_moved(inputs[0], passes=1)
        self._measure(case.name, contenders, inputs[0], case.inputs, moved, once)

    def method(self, case: Method, tensors: Sequence[Tensor], peer: MergekitPeer | None) -> None:
        """Time one merge of a tensor: fastmerge, plain PyTorch, its compiled form, and mergekit."""
        out = torch.empty_like(tensors[0])
        plain = MERGES[case.method]
        compiled = self.compile(plain)
        inputs = tensors[: case.inputs]
        contenders = {
            "fastmerge": lambda: case.run(out, tensors),
            "torch": lambda: plain(inputs, **case.values),
            "torch.compile": lambda: compiled(inputs, **case.values),
        }
        extra = {"mergekit": lambda: peer.merge(case)} if peer else {}
        moved, once = (f(out.numel(), out.element_size()) for f in (case.bytes_moved, case.bytes_once))
        self._measure(case.method, contenders, out, case.inputs, moved, once, extra)

    def model(self, case: Method, sizes: Iterable[int], tensors: Sequence[Tensor]) -> None:
        """Time a merge of all tensors of a model, one by one, in the same buffers."""
        sizes = list(sizes)
        out = torch.empty_like(tensors[0])

        def run() -> None:
            for size in sizes:
                case.run(out[:size], [tensor[:size] for tensor in tensors])

        moved, once = (f(sum(sizes), out.element_size()) for f in (case.bytes_moved, case.bytes_once))
        self._measure(f"{case.method}, 70B-shaped", {"fastmerge": run}, out, case.inputs, moved, once, shape=sum(sizes))

    def transfers(self, nbytes: int) -> None:
        """Time copies between pinned host memory and the device."""
        host, there = (
            torch.empty(nbytes, dtype=torch.uint8, pin_memory=True),
            torch.empty(nbytes, dtype=torch.uint8, device=self.device),
        )
        for name, run in (("copy host to device", lambda: there.copy_(host, non_blocking=True)),
                          ("copy device to host", lambda: host.copy_(there, non_blocking=True))):  # fmt: skip
            self._measure(name, {"torch": run}, there, 1, nbytes, nbytes)

    def _measure(
        self, op: str, contenders: dict[str, Callable[[], object]], like: Tensor, models: int, moved: int, once: int,
        extra: dict[str, _measure.Contender] | None = None, shape: int | None = None,
    ) -> None:  # fmt: skip
        source = torch.zeros(max(2**12, min(like.nbytes, 2**28)), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        clocks = {name: timed(run, self.device) for name, run in contenders.items()} | (extra or {})
        clocks["copy"] = timed(lambda: target.copy_(source), self.device)
        samples = _measure.take_turns(clocks, *((0, 0.0) if self.check else (RUNS, BUDGET)))
        times = {name: _measure.time_columns(seconds) for name, seconds in samples.items()}
        copy_gbps = 2e-6 * source.nbytes / times.pop("copy")["ms"]
        rows = []
        for tool, row in times.items():
            gbps, gbps_once = 1e-6 * moved / row["ms"], 1e-6 * once / row["ms"]
            rows.append(self.facts | {
                "op": op, "tool": tool, "backend": self.backend if tool == "fastmerge" else "",
                "shape": like.numel() if shape is None else shape, "dtype": str(like.dtype).removeprefix("torch."),
                "models": models, **row, "bytes": moved, "gbps": gbps, "fraction": gbps / copy_gbps,
                "bytes_once": once, "gbps_once": gbps_once, "fraction_once": gbps_once / copy_gbps,
                "copy_gbps": copy_gbps, "ratio": row["ms"] / times[next(iter(times))]["ms"],
            })  # fmt: skip
            print(
                f"{op:36} {tool:14} {rows[-1]['shape']:>12} {rows[-1]['dtype']:9} {row['ms']:10.3f} ms "
                f"{gbps:7.1f} GB/s = {gbps / copy_gbps:5.2f} of copy, {rows[-1]['ratio']:7.1f} x",
                flush=True,
            )
        _record.append(self.csv, _record.KERNEL_COLUMNS, rows)


def verify_all(device: torch.device, elements: int) -> None:
    """Raise AssertionError unless every operation and every merge has the bits of the reference."""
    tensors = make_tensors(elements, seed=1)
    inputs = [*tensors, *tensors, *tensors, *tensors]
    for dtype in dtypes(device):
        for case in cases.OPERATIONS:
            cases.verify(case, [tensor.to(dtype) for tensor in inputs], device, "triton")
    for method in CASES:
        expected, out = torch.empty_like(tensors[0]), torch.empty_like(tensors[0], device=device)
        with kernels.use_backend("reference"):
            method.run(expected, tensors)
        with kernels.use_backend("triton"):
            method.run(out, [tensor.to(device) for tensor in tensors])
        assert torch.equal(out.cpu(), expected), f"{method.method}: triton differs from the reference"
    print(f"verified {len(cases.OPERATIONS)} operations and {len(CASES)} merges of {elements} elements", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.timing", description=__doc__)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--millions", nargs="+", type=int, default=[64, 16], help="elements per tensor, times 2**20")
    parser.add_argument("--mergekit-python", metavar="PATH", help="interpreter that has mergekit, with CUDA")
    parser.add_argument("--verify", type=int, metavar="ELEMENTS", help="only verify, on tensors of that size")
    parser.add_argument("--check", action="store_true", help="dry run on the CPU; needs TRITON_INTERPRET=1")
    options = parser.parse_args()
    if options.check:
        if os.environ.get("TRITON_INTERPRET") != "1":
            parser.error("--check runs in Triton's interpreter; set TRITON_INTERPRET=1")
        _registry.PREFERENCE["cpu"] = ("triton", "reference")
    elif why := _triton.why_unavailable():
        parser.error(f"cannot measure: {why}")
    device = torch.device("cpu" if options.check else "cuda")
    verify_all(device, options.verify or (CHECK_ELEMENTS if options.check else VERIFY_ELEMENTS))
    if options.verify:
        return
    bench = Bench(device, options.csv, options.mergekit_python, options.check)
    with kernels.use_backend("triton"):
        if not options.check:
            bench.transfers(2**28)
        sizes = list((cases.Llama(0, 8, 16, 8, 8) if options.check else cases.Llama()).sizes())
        tensors = _filled(max(sizes), device)
        for case in CASES:
            if case.method in ("linear", "ties", "dare_ties"):
                bench.model(case, sizes, tensors)
        del tensors
        for elements in [CHECK_ELEMENTS] if options.check else [m << 20 for m in options.millions]:
            _one_size(bench, elements)


def _one_size(bench: Bench, elements: int) -> None:
    host = make_tensors(elements)
    with tempfile.TemporaryDirectory() as folder:
        python = bench.mergekit_python
        peer = MergekitPeer(python, host, torch.get_num_threads(), Path(folder), bench.device.type) if python else None
        tensors = [tensor.to(bench.device) for tensor in host]
        for case in CASES:
            bench.method(case, tensors, peer)
        if peer:
            peer.close()
    for dtype in dtypes(bench.device):
        # Copies, so that no tensor is read twice from a cache.
        inputs = [t.to(dtype, copy=True) for _ in range(4) for t in tensors]
        for case in cases.OPERATIONS:
            bench.operation(case, inputs)


def _filled(elements: int, device: torch.device) -> list[Tensor]:
    """Return a base and three experts with the values of ``make_tensors``, made on the device."""
    base = torch.empty(elements, dtype=torch.bfloat16, device=device).normal_(0, 0.02)
    experts = [torch.empty_like(base).normal_(0, 5e-4).add_(base) for _ in range(3)]
    return [base, *experts]


if __name__ == "__main__":
    main()
