"""Every operation and every method on every backend, at a size that takes seconds in all: for pytest-benchmark.

``pytest benchmarks --benchmark-only``. Verified, then timed, on the GPU where there is one, else on the CPU. For
comparing two states of the code, not for figures: see README.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmerge import kernels
from fastmerge.functional import merge_tensors
from fastmerge.methods import REQUIRED, Method, Parameter, all_methods

from .inventory import CASES, Case, make_inputs, verify

pytest.importorskip("pytest_benchmark")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MODELS = 3
ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 24}
# Methods that decompose take matrices of this size; their name says that they are matrices.
ROWS, NAME = 256, "model.layers.0.self_attn.q_proj.weight"
# The reference is there to be right.
NAMES = ("cuda", "triton") if DEVICE.type == "cuda" else ("cpu", "reference")
quick = pytest.mark.benchmark(max_time=0.05, min_rounds=3, warmup=False)


def _runs() -> Iterator[tuple[Case, str]]:
    for case in CASES:
        for backend in case.backends(DEVICE, NAMES):
            yield case, backend


def _timed(benchmark: Any, group: str, nbytes: int, run: Any) -> None:
    benchmark.group = group
    benchmark.extra_info |= {"bytes": nbytes, "device": DEVICE.type}

    def until_done() -> None:
        run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark(until_done)


@quick
@pytest.mark.parametrize(
    ("case", "backend"), list(_runs()), ids=lambda value: getattr(value, "name", value)
)  # fmt: skip
def test_operation(benchmark: Any, case: Case, backend: str) -> None:
    models = case.models or MODELS
    verify(case, make_inputs(case.based, 2 * kernels.GRID + 77, models, torch.bfloat16, seed=1), DEVICE, [backend])
    inputs = make_inputs(case.based, ELEMENTS[DEVICE.type], models, torch.bfloat16, DEVICE)
    out = torch.empty_like(inputs[0])
    _timed(benchmark, case.name, case.bytes_once(inputs), lambda: case.run(out, inputs, backend))


def _value(parameter: Parameter) -> Any:
    """Return a value for a parameter without a default."""
    if parameter.choices:
        return parameter.choices[0]
    low, high = parameter.minimum, parameter.maximum
    return parameter.kind((low + high) / 2 if low is not None and high is not None else max(0.5, low or 0))


def _merge(method: Method, tensors: list[Tensor], **how: Any) -> Tensor:
    least, most = method.inputs
    count = max(least, min(MODELS, most or MODELS))
    required = {p.name: _value(p) for p in method.parameters_of(method.semantics[0]) if p.default is REQUIRED}
    base = None if method.base == "ignored" else tensors[0]
    return merge_tensors(
        base, tensors[1 : 1 + count], method=method.name, name=NAME,
        **{f"{key}_" if key == "lambda" else key: value for key, value in required.items()}, **how,
    )  # fmt: skip


@quick
@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("method", list(all_methods().values()), ids=lambda method: method.name)
def test_method(benchmark: Any, method: Method, backend: str) -> None:
    tensors = [t.view(ROWS, -1) for t in make_inputs(True, ROWS * ROWS, MODELS, torch.bfloat16, DEVICE)]
    try:
        found = _merge(method, tensors, backend=backend)
    except kernels.BackendError as error:
        pytest.skip(str(error))
    expected = _merge(method, [t.cpu() for t in tensors], backend="reference")
    # Decompositions have other last bits on a GPU.
    whole = type(method).scratch_bytes is not Method.scratch_bytes
    error = (found.cpu().float() - expected.float()).norm() / expected.float().norm()
    assert torch.equal(found.cpu(), expected) if DEVICE.type == "cpu" or not whole else error < 1e-2
    nbytes = 2 * found.numel() * (MODELS + 2)
    out = torch.empty_like(found)
    _timed(benchmark, method.name, nbytes, lambda: _merge(method, tensors, backend=backend, out=out))
