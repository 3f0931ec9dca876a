"""Times merges of one tensor by each method: every backend, plain PyTorch, ``torch.compile`` of it, and mergekit."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fastmerge import kernels
from fastmerge.recipe import mergekit_names

from .._bench import Bench, Contender, Run, label, rotating
from .._mergekit import MergekitPeer, check_peers
from ..inventory import make_inputs
from .cases import EXPERTS, Case
from .plain_torch import MERGES, by_formula

# Odd, so that the last vector of a loop is a partial one, and several chunks of the reduction grid.
VERIFY_ELEMENTS = 64 * kernels.GRID + 12345
# Two rows for methods that look at rows, and an odd end for the others.
CHECK_ELEMENTS = 2 * 4096 + 301


def run(bench: Bench, cases: Sequence[Case], elements: int, with_mergekit: bool = True) -> dict[str, float]:
    """Verify methods, time them at one size, and return fastmerge's milliseconds by method."""
    best = {}
    count = bench.sets(2 * elements * (EXPERTS + 2))
    sets = [make_tensors(elements, bench.device, seed) for seed in range(count)]
    with _peer(bench, sets[0], with_mergekit) as peer:
        for case in cases:
            with bench.attempt(case.method):
                backends = verified(bench, case)
                # No backend here may have all of its operations.
                if backends:
                    times = _time(bench, case, [case.shaped(tensors) for tensors in sets], backends, peer)
                    best[case.method] = min(times[key] for key in times if key[0] == "fastmerge")
    return best


def compiled(bench: Bench, case: Case, elements: int, ratio_to: float | None) -> None:
    """Time ``torch.compile`` of plain PyTorch, which takes long to compile."""
    sets = [case.shaped(make_tensors(elements, bench.device, 0))]
    contenders = [Contender("torch.compile", _plain(case, sets, bench.compile(MERGES[case.method])))]
    _measure(bench, case, sets, contenders, ratio_to)


def make_tensors(elements: int, device: torch.device, seed: int) -> list[Tensor]:
    """Return a base and experts in bfloat16: weights N(0, 0.02), fine-tuned by N(0, 5e-4)."""
    return make_inputs(True, elements, EXPERTS, torch.bfloat16, device, seed)


def verified(bench: Bench, case: Case) -> list[str]:
    """Return the backends that can run a merge; AssertionError if one has other bits than the reference."""
    elements = CHECK_ELEMENTS if bench.check else VERIFY_ELEMENTS
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


@contextmanager
def _peer(bench: Bench, tensors: list[Tensor], wanted: bool) -> Iterator[MergekitPeer | None]:
    peer = None
    with tempfile.TemporaryDirectory() as folder:
        if wanted and bench.mergekit_python:
            with bench.attempt("mergekit"):
                threads = torch.get_num_threads()
                peer = MergekitPeer(bench.mergekit_python, Path(folder), threads, bench.device.type)
                peer.give(tensors)
        yield peer
        if peer:
            peer.close()


def _time(
    bench: Bench, case: Case, sets: Sequence[Sequence[Tensor]], backends: Sequence[str], peer: MergekitPeer | None
) -> dict[tuple[str, str], float]:
    """Time what needs no compiler, after comparing the results on the first of ``sets``."""
    base = sets[0][0]
    outs = [torch.empty_like(base) for _ in sets]

    def own(backend: str) -> Run:
        def merge(out: Tensor, tensors: Sequence[Tensor]) -> None:
            with kernels.use_backend(backend):
                case.run(out, tensors)

        return rotating(merge, list(zip(outs, sets, strict=True)))

    first = torch.empty_like(base)
    case.run(first, sets[0])
    plain = MERGES.get(case.method) or by_formula(case)
    if case.near:
        check_peers(case.method, base, first, {"torch": _plain(case, sets[:1], plain)()})
    contenders = [Contender("fastmerge", own(backend), label(backend)) for backend in backends]
    contenders.append(Contender("torch", _plain(case, sets, plain)))
    if peer and case.method in mergekit_names.METHODS:
        contenders.append(Contender("mergekit", measure=peer.contender(case, base, first)))
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
