"""Times merges of one tensor by each method on the GPU, mergekit's at the first size, compilers after all others."""

from __future__ import annotations

from .._bench import Bench
from ..kernels import methods
from ..kernels.cases import CASES
from .cases import SIZES

COMPILE_SECONDS = 20


def run(bench: Bench) -> None:
    sizes = [methods.CHECK_ELEMENTS] if bench.check else SIZES
    best: dict[str, float] = {}
    for elements in sizes:
        best = methods.run(bench, CASES, elements, with_mergekit=elements == sizes[0]) | best
    for case in CASES:
        what = f"torch.compile of {case.method}"
        if bench.has(COMPILE_SECONDS, what):
            with bench.attempt(what):
                methods.compiled(bench, case, sizes[0], best.get(case.method))
    if bench.mergekit_python is None:
        print("no rows of mergekit: --mergekit-python names no interpreter that has it", flush=True)
