"""Time the extraction of LoRA adapters beside a full SVD: ``python -m benchmarks.spectral``. Verifies first.

The best approximation of a given rank: ``top_singular`` beside ``torch.linalg.svd``, cut, which is what
mergekit-extract-lora does, and ``torch.svd_lowrank``, in turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fastmerge.kernels.spectral import top_singular

from . import _measure, _record

VERIFY_SIZE = 512
# By what share the distance to the matrix may exceed that of the best approximation.
LARGEST_ERROR = 1e-5

# Two factors, whose product is the approximation.
Factors = tuple[Tensor, Tensor]


def make_delta(size: int, seed: int = 0) -> Tensor:
    """Return the difference of two bfloat16 matrices: a power law of size / 16 directions, noise, and rounding."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    base = (0.02 * normal(size, size)).bfloat16()
    rank = size // 16
    decay = torch.arange(1, rank + 1) ** -0.5
    update = 0.002 * (normal(size, rank) * decay) @ normal(rank, size) + 0.0003 * normal(size, size)
    return (base.float() + update).bfloat16().float() - base.float()


def fastmerge(delta: Tensor, rank: int) -> Factors:
    u, s, vh, _ = top_singular(delta, rank)
    return u * s, vh


def full(delta: Tensor, rank: int) -> Factors:
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    return u[:, :rank] * s[:rank], vh[:rank]


def lowrank(delta: Tensor, rank: int) -> Factors:
    """As fast, with no stop: what it misses is in the column ``error``."""
    u, s, v = torch.svd_lowrank(delta, q=rank)
    return u * s, v.mT


WAYS: dict[str, Callable[[Tensor, int], Factors]] = {"fastmerge": fastmerge, "torch": full, "torch lowrank": lowrank}


def error_of(delta: Tensor, found: Factors, best: Factors) -> float:
    """Return by what share the distance to the matrix exceeds that of ``best``."""
    distance, least = (float((delta.double() - a.double() @ b.double()).norm()) for a, b in (found, best))
    return distance / least - 1


def verify(rank: int) -> None:
    """Raise AssertionError unless the exact ways agree with an SVD in float64, at a size where that takes no time."""
    delta = make_delta(VERIFY_SIZE)
    exact = full(delta.double(), rank)
    for tool in ("fastmerge", "torch"):
        found = error_of(delta, WAYS[tool](delta, rank), exact)
        assert abs(found) <= LARGEST_ERROR, f"{tool} is off by {found:.2g} at size {VERIFY_SIZE}"


def measure(size: int, rank: int, runs: int, budget: float) -> list[dict[str, object]]:
    """Time the ways in turns; return one row per tool. AssertionError where ours is farther from the matrix."""
    delta, results = make_delta(size), dict[str, Factors]()

    def contender(tool: str) -> _measure.Contender:
        return _measure.timed(lambda: results.update({tool: WAYS[tool](delta, rank)}))

    samples = _measure.take_turns({tool: contender(tool) for tool in WAYS}, runs, budget)
    errors = {tool: error_of(delta, result, results["torch"]) for tool, result in results.items()}
    assert abs(errors["fastmerge"]) <= LARGEST_ERROR, f"fastmerge differs from torch by {errors['fastmerge']:.2g}"
    times = {tool: _measure.time_columns(seconds) for tool, seconds in samples.items()}
    return [
        {
            "op": "lora_extraction", "tool": tool, "shape": f"{size}x{size}", "rank": rank, "dtype": "float32",
            **times[tool], "error": errors[tool], "ratio": times[tool]["ms"] / times["fastmerge"]["ms"],
        }
        for tool in times
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spectral", description=__doc__)
    parser.add_argument("--size", type=int, default=4096, help="rows and columns")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5, help="most runs of each contender")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of runs after which a contender stops")
    parser.add_argument("--csv", type=Path, default=_record.DATA / "spectral.csv")
    options = parser.parse_args()
    verify(min(options.rank, VERIFY_SIZE // 8))
    rows = measure(options.size, options.rank, options.runs, options.budget)
    facts = _record.run_facts(torch.get_num_threads())
    _record.append(options.csv, _record.SPECTRAL_COLUMNS, [facts | row for row in rows])
    for row in rows:
        print(
            f"{row['tool']:13} {row['shape']:>11} rank {row['rank']:4} {row['ms']:10.1f} ms ({row['runs']} runs), "
            f"error {row['error']:8.1e}, {row['ratio']:7.1f} x fastmerge"
        )


if __name__ == "__main__":
    main()
