"""Time spectral operations beside a full SVD: ``python -m benchmarks.spectral``. Verifies first, then takes turns.

lora_extraction   the best approximation of a given rank: ``top_singular`` beside ``torch.linalg.svd``, cut, which is
                  what mergekit-extract-lora does, and ``torch.svd_lowrank``
factored_boost    Subspace Boosting of a sum of LoRA adapters: ``boost_factored`` beside the SVD of their product
adapter_merge     three LoRA adapters of a quarter of the rank merged into one, combination type svd: the merge of
                  ``merge_adapter_folders`` beside PEFT's ``add_weighted_adapter``
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastmerge.adapters.combining import Combination, Factors
from fastmerge.kernels.spectral import boost_factored, top_singular

from .. import _measure, _record

VERIFY_SIZE = 512
BETA = 0.2
# Of three adapters that are merged: weights, and alpha over rank.
MERGE_WEIGHTS, SCALE = [0.5, 0.3, 0.7], 2.0

Run = Callable[[], tuple[Tensor, Tensor]]
"""One way to the result, as two factors whose product it is."""


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


def make_adapters(size: int, rank: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the stacked factors of four adapters, of ``rank`` together."""
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(size, rank, generator=generator), torch.randn(rank, size, generator=generator)
    return 0.02 * up, 0.02 * down / rank**0.5


def extraction(size: int, rank: int) -> dict[str, Run]:
    """Return the ways to the best approximation of ``rank``."""
    delta = make_delta(size)

    def fastmerge() -> tuple[Tensor, Tensor]:
        u, s, vh, _ = top_singular(delta, rank)
        return u * s, vh

    def plain() -> tuple[Tensor, Tensor]:
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        return u[:, :rank] * s[:rank], vh[:rank]

    def lowrank() -> tuple[Tensor, Tensor]:
        # As fast, with no stop: what it misses is in the column ``error``.
        u, s, v = torch.svd_lowrank(delta, q=rank)
        return u * s, v.mT

    return {"fastmerge": fastmerge, "torch": plain, "torch lowrank": lowrank}


def extraction_error(size: int, found: tuple[Tensor, Tensor], best: tuple[Tensor, Tensor]) -> float:
    """Return by what share the distance to the matrix exceeds that of ``best``."""
    delta = make_delta(size).double()
    distance, least = (float((delta - a.double() @ b.double()).norm()) for a, b in (found, best))
    return distance / least - 1


def boosting(size: int, rank: int) -> dict[str, Run]:
    """Return the ways to the boosted product of two factors, its null directions left at zero."""
    up, down = make_adapters(size, rank)

    def fastmerge() -> tuple[Tensor, Tensor]:
        return boost_factored(up, down, BETA)[:2]

    def plain() -> tuple[Tensor, Tensor]:
        return _boosted(up @ down, rank)

    return {"fastmerge": fastmerge, "torch": plain}


def _boosted(product: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(product, full_matrices=False)
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    k = int((s.cumsum(0) / s.sum() >= BETA).nonzero()[0])
    return u * s.clamp(min=float(s[k])), vh


def boosting_error(size: int, found: tuple[Tensor, Tensor], best: tuple[Tensor, Tensor]) -> float:
    """Return the distance of the product from that of ``best``, relative to it."""
    expected = best[0].double() @ best[1].double()
    return float((found[0].double() @ found[1].double() - expected).norm() / expected.norm())


def merging(size: int, rank: int) -> dict[str, Run]:
    """Return the ways to the merged factors of three adapters, cut to the rank of one; PEFT's needs PEFT."""
    import peft

    own = rank // 4
    model = peft.get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(size, size, bias=False)),
        peft.LoraConfig(r=own, lora_alpha=SCALE * own, target_modules=["0"]), adapter_name="a0",
    )  # fmt: skip
    for name in ("a1", "a2"):
        model.add_adapter(name, model.peft_config["a0"])
    layer = model.base_model.model[0]
    factors = []
    for i in range(3):
        up, down = make_adapters(size, own, seed=i)
        layer.lora_B[f"a{i}"].weight.data, layer.lora_A[f"a{i}"].weight.data = up, down
        factors.append(Factors(up, down, SCALE))

    def fastmerge() -> tuple[Tensor, Tensor]:
        merged = Combination("svd", own).merge("layer", factors, MERGE_WEIGHTS)
        return merged.up, merged.down

    names = (f"merged{i}" for i in itertools.count())  # what is there already would not be merged again

    def peer() -> tuple[Tensor, Tensor]:
        name = next(names)
        model.add_weighted_adapter(["a0", "a1", "a2"], MERGE_WEIGHTS, name, combination_type="svd")
        return layer.lora_B[name].weight.data, layer.lora_A[name].weight.data

    return {"fastmerge": fastmerge, "peft": peer}


def _merged_exactly(size: int, rank: int) -> tuple[Tensor, Tensor]:
    pairs = [make_adapters(size, rank // 4, seed=i) for i in range(3)]
    total = sum(SCALE * w * up.double() @ down.double() for w, (up, down) in zip(MERGE_WEIGHTS, pairs, strict=True))
    u, s, vh = torch.linalg.svd(torch.as_tensor(total))
    return u[:, : rank // 4] * s[: rank // 4], vh[: rank // 4]


# Ways, their error beside another result, and the largest that passes.
CASES = {
    "lora_extraction": (extraction, extraction_error, 1e-5),
    "factored_boost": (boosting, boosting_error, 1e-4),
    "adapter_merge": (merging, boosting_error, 1e-4),
}


def verify(ops: Sequence[str], rank: int) -> None:
    """Raise AssertionError unless the exact ways agree with an SVD in float64, at a size where that takes no time."""
    u, s, vh = torch.linalg.svd(make_delta(VERIFY_SIZE).double())
    up, down = make_adapters(VERIFY_SIZE, rank)
    exact = {
        "lora_extraction": (u[:, :rank] * s[:rank], vh[:rank]),
        "factored_boost": _boosted(up.double() @ down.double(), rank),
        "adapter_merge": _merged_exactly(VERIFY_SIZE, rank),
    }
    for op in ops:
        ways, error, largest = CASES[op]
        for tool, run in ways(VERIFY_SIZE, rank).items():
            found = error(VERIFY_SIZE, run(), exact[op])
            assert abs(found) <= largest or tool == "torch lowrank", (
                f"{op}: {tool} is off by {found:.2g} at size {VERIFY_SIZE}"
            )


def measure(op: str, size: int, rank: int, runs: int, budget: float) -> list[dict[str, object]]:
    """Time the ways of one operation in turns; return one row per tool. AssertionError when their results differ."""
    ways, error, largest = CASES[op]
    results: dict[str, tuple[Tensor, Tensor]] = {}

    def contender(tool: str, run: Run) -> _measure.Contender:
        def keep() -> None:
            results[tool] = run()

        return _measure.timed(keep)

    samples = _measure.take_turns({tool: contender(tool, run) for tool, run in ways(size, rank).items()}, runs, budget)
    peer = results["torch" if "torch" in results else "peft"]
    errors = {tool: error(size, result, peer) for tool, result in results.items()}
    assert abs(errors["fastmerge"]) <= largest, f"{op}: fastmerge differs from its peer by {errors['fastmerge']:.2g}"
    times = {tool: _measure.time_columns(seconds) for tool, seconds in samples.items()}
    return [
        {
            "op": op, "tool": tool, "shape": f"{size}x{size}", "rank": rank, "dtype": "float32", **times[tool],
            "error": errors[tool], "ratio": times[tool]["ms"] / times["fastmerge"]["ms"],
        }
        for tool in times
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.spectral", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ops", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--sizes", nargs="+", type=int, default=[4096], help="rows and columns")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--threads", nargs="+", type=int, default=[torch.get_num_threads()])
    parser.add_argument("--runs", type=int, default=5, help="most runs of each contender")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of runs after which a contender stops")
    parser.add_argument("--csv", type=Path, default=_record.DATA / "spectral.csv")
    options = parser.parse_args()
    verify(options.ops, min(options.rank, VERIFY_SIZE // 8))
    for threads in options.threads:
        torch.set_num_threads(threads)
        facts = _record.run_facts(threads)
        for op in options.ops:
            for size in options.sizes:
                rows = measure(op, size, options.rank, options.runs, options.budget)
                _record.append(options.csv, _record.SPECTRAL_COLUMNS, [facts | row for row in rows])
                for row in rows:
                    print(
                        f"{row['op']:16} {row['tool']:13} {row['shape']:>11} rank {row['rank']:4} {row['ms']:10.1f} ms "
                        f"({row['runs']} runs), error {row['error']:8.1e}, {row['ratio']:7.1f} x fastmerge",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
