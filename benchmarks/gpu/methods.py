"""Times merges of one tensor by each method: every backend, plain PyTorch, ``torch.compile`` of it, and mergekit."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from fastmerge import kernels

from ..kernels.__main__ import MergekitPeer, check_peers
from ..kernels.cases import CASES, EXPERTS, Case
from ..kernels.plain_torch import MERGES
from . import cases
from .timing import Bench, Contender, Run, rotating, sets_of
from .verify import VERIFY_ELEMENTS

# mergekit takes part in the first size.
SIZES = (64 << 20, 256 << 20)
COMPILE_SECONDS = 20
# Two rows for methods that look at rows, and an odd end for the others.
CHECK_ELEMENTS = 2 * 4096 + 301


def run(bench: Bench) -> None:
    """Time every method at every size; ``torch.compile``, which takes long to compile, after all others."""
    backends = {}
    for case in CASES:
        with bench.attempt(case.method):
            backends[case.method] = verified(bench, case)
    sizes = [CHECK_ELEMENTS] if bench.check else SIZES
    best: dict[str, float] = {}
    for elements in sizes:
        count = 1 if bench.check else sets_of(2 * elements * (EXPERTS + 2))
        sets = [make_tensors(elements, bench.device, seed) for seed in range(count)]
        with tempfile.TemporaryDirectory() as folder:
            peer = None
            if bench.mergekit_python and elements == sizes[0]:
                with bench.attempt("mergekit"):
                    peer = _peer(bench, bench.mergekit_python, sets[0], Path(folder))
            for case in CASES:
                # No backend here may have all of its operations.
                if not backends.get(case.method):
                    continue
                with bench.attempt(case.method):
                    times = _eager(bench, case, sets, backends[case.method], peer, Path(folder))
                    best.setdefault(case.method, min(times[key] for key in times if key[0] == "fastmerge"))
            if peer:
                peer.close()
    sets = [make_tensors(sizes[0], bench.device, 0)]
    for case in CASES:
        with bench.attempt(f"torch.compile of {case.method}"):
            if not bench.has(COMPILE_SECONDS, f"torch.compile of {case.method}"):
                continue
            shaped = [case.shaped(tensors) for tensors in sets]
            contenders = [Contender("torch.compile", _plain(case, shaped, bench.compile(MERGES[case.method])))]
            _measure(bench, case, shaped, contenders, best.get(case.method))
    if bench.mergekit_python is None:
        print("no rows of mergekit: --mergekit-python names no interpreter that has it", flush=True)


def make_tensors(elements: int, device: torch.device, seed: int) -> list[Tensor]:
    """Return a base and experts in bfloat16, as ``benchmarks.kernels`` has them."""
    return cases.make_inputs(cases.BASED, elements, EXPERTS, torch.bfloat16, device, seed)


def verified(bench: Bench, case: Case) -> list[str]:
    """Return the backends that can run a merge; AssertionError if one has other bits than the reference."""
    elements = CHECK_ELEMENTS if bench.check else VERIFY_ELEMENTS[0]
    tensors = case.shaped(make_tensors(elements, torch.device("cpu"), 1))
    expected = torch.full_like(tensors[0], torch.nan)
    with kernels.use_backend("reference"):
        case.run(expected, tensors)
    found = []
    for backend in bench.backends:
        out = torch.full_like(tensors[0], torch.nan, device=bench.device)
        try:
            with kernels.use_backend(backend):
                case.run(out, [tensor.to(bench.device) for tensor in tensors])
        except kernels.BackendError as error:
            print(f"{case.method}: {error}", flush=True)
            continue
        assert torch.equal(out.cpu(), expected), f"{case.method}: {backend} differs from the reference"
        found.append(backend)
    return found


def _eager(
    bench: Bench, case: Case, sets: Sequence[Sequence[Tensor]], backends: Sequence[str], peer: MergekitPeer | None,
    folder: Path,
) -> dict[tuple[str, str], float]:  # fmt: skip
    """Time what needs no compiler, after comparing the results on the first of ``sets``."""
    sets = [case.shaped(tensors) for tensors in sets]
    tensors = sets[0]
    outs = [torch.empty_like(tensors[0]) for _ in sets]

    def own(backend: str) -> Run:
        def merge(out: Tensor, tensors: Sequence[Tensor]) -> None:
            with kernels.use_backend(backend):
                case.run(out, tensors)

        return rotating(merge, list(zip(outs, sets, strict=True)))

    case.run(outs[0], tensors)
    results = {"torch": _plain(case, sets[:1], MERGES[case.method])()}
    contenders = [Contender("fastmerge", own(backend), backend) for backend in backends]
    contenders.append(Contender("torch", _plain(case, sets, MERGES[case.method])))
    if peer:
        saved = folder / "out.safetensors"
        peer.merge(case, save=saved)
        results["mergekit"] = load_file(saved)["merged"].to(bench.device)
        contenders.append(Contender("mergekit", measure=lambda: peer.merge(case)))
    check_peers(case.method, tensors[0], outs[0], results)
    return _measure(bench, case, sets, contenders)


def _plain(case: Case, sets: Sequence[Sequence[Tensor]], merge: Callable[..., Tensor]) -> Run:
    return rotating(lambda tensors: merge(tensors, **case.values), [(tensors[: case.inputs],) for tensors in sets])


def _measure(
    bench: Bench, case: Case, sets: Sequence[Sequence[Tensor]], contenders: Sequence[Contender],
    ratio_to: float | None = None,
) -> dict[tuple[str, str], float]:  # fmt: skip
    like = sets[0][0]
    size = like.numel(), like.element_size()
    return bench.measure(
        case.method, contenders, shape=like.numel(), dtype=like.dtype, models=case.inputs,
        once=case.bytes_once(*size), moved=case.bytes_moved(*size), ratio_to=ratio_to,
    )  # fmt: skip


def _peer(bench: Bench, python: str, tensors: Sequence[Tensor], folder: Path) -> MergekitPeer:
    host = [tensor.cpu() for tensor in tensors]
    return MergekitPeer(python, host, torch.get_num_threads(), folder, bench.device.type)
