"""How a backend is chosen: the order of an operation, what is missing, and what was measured for it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmerge.kernels import OPERATIONS, BackendError
from fastmerge.kernels._registry import Order
from fastmerge.reports import doctor

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MEASURED, RESULTS = BENCHMARKS / "data" / "gpu.csv", BENCHMARKS / "gpu" / "RESULTS.md"


@pytest.fixture
def there(monkeypatch):
    """A function that lets these backends run, and no others."""

    def only(*names: str) -> None:
        for operation in OPERATIONS.values():
            for name, implementation in operation.implementations.items():
                why = None if name in names else f"no {name} here"
                monkeypatch.setattr(implementation, "probe", lambda why=why: why)

    return only


def test_each_operation_has_its_order(there):
    there("cuda", "triton")
    first = {name: operation.choose("cuda")[0] for name, operation in OPERATIONS.items()}
    assert first == {
        "equal_counts": "triton", "gram": "cuda", "norms": "triton", "sparse_merge": "triton",
        "weighted_sum": "triton", "low_rank": "cuda", "magnitude_histogram": "cuda", "rank_mask": "cuda",
        "select": "cuda",
    }  # fmt: skip
    assert {OPERATIONS[name].choose("cuda", many=True)[0] for name in ("weighted_sum", "sparse_merge")} == {"cuda"}
    assert OPERATIONS["gram"].choose("mps") == ("reference", "the only one")


def test_what_is_missing_is_named(there):
    there("cuda")
    assert OPERATIONS["norms"].choose("cuda") == ("cuda", "fastest available; triton: no triton here")
    there()
    assert OPERATIONS["rank_mask"].choose("cuda") == ("reference", "fastest available; cuda: no cuda here")
    with pytest.raises(BackendError, match="gram: backend 'cuda' was asked for but cannot run: no cuda here"):
        OPERATIONS["gram"].choose("cuda", "cuda")


def test_doctor_says_why(there):
    there("cuda", "triton")
    found = doctor._choices("cuda")
    assert found["gram"] == "cuda (expected to be 1.0 to 5 times as fast as Triton on an H200)"
    assert found["sparse_merge"].endswith(
        "; several tensors in one call: cuda (2.5 times as fast as Triton on an H200)"
    )


ORDERS = [(name, op.gpu) for name, op in OPERATIONS.items() if name not in ("rank_mask", "low_rank")]
ORDERS += [(name, op.gpu_many) for name, op in OPERATIONS.items() if op.gpu_many]
# What rests on a prediction says so; all else was measured.
EXPECTED = [(name, order) for name, order in ORDERS if order.because.startswith("expected to be ")]


def _ratios(name: str, order: Order) -> Iterator[float]:
    """Yield how many times as fast the first backend of an order was as the second, for every measurement."""
    first, second = order.backends
    times: dict[tuple[str, ...], dict[str, float]] = {}
    with MEASURED.open(newline="") as file:
        for row in csv.DictReader(file):
            op, *variant = row["op"].split(", ")
            together = op.endswith("_many of 300")
            # What a call costs the host is another matter.
            if (
                row["tool"] != "fastmerge"
                or "host" in variant
                or op.partition("_many")[0] not in (name, f"{name}_boundaries")
            ):
                continue
            if OPERATIONS[name].gpu_many is None or together == (order is OPERATIONS[name].gpu_many):
                key = row["op"], row["shape"], row["dtype"], row["models"]
                times.setdefault(key, {})[row["backend"]] = float(row["ms"])
    for found in times.values():
        yield found[second] / found[first]


@pytest.mark.parametrize(("name", "order"), EXPECTED, ids=lambda value: value if isinstance(value, str) else "")
def test_an_expected_order_has_its_derivation(name, order):
    _, _, expected = RESULTS.read_text().partition("## Expected since then")
    assert f"| `{name}`" in expected and order.because.endswith(" on an H200")


@pytest.mark.parametrize(
    ("name", "order"),
    [each for each in ORDERS if each not in EXPECTED],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_order_is_what_was_measured(name, order):
    ratios = sorted(_ratios(name, order))
    assert ratios[0] > 0.98
    least, most = (f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}" for ratio in (ratios[0], ratios[-1]))
    span = least if least == most else f"{least} to {most}"
    other = {"cuda": "CUDA", "triton": "Triton"}[order.backends[1]]
    assert order.because == f"{span} times as fast as {other} on an H200"
