"""Time the average of a model that trains, beside a step of it: ``python -m benchmarks.averager``.

``Averager``, torch's ``AveragedModel`` with its ``multi_avg_fn``, and a loop with ``torch._foreach_lerp_``, in turns:
an exponential average in float32 of a transformer in float32 on the CPU. All take the same steps before they are timed,
and how far each one is from the same average in float64 is told beside its time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastmerge.training import Averager, ema

from . import _measure, _record

COLUMNS = (
    *_record.RUN_COLUMNS, "op", "tool", "shape", "dtype", *_record.TIME_COLUMNS, "tokens", "of_step", "error",
    "same_bits", "bytes",
)  # fmt: skip
DECAY, STEPS = 0.999, 1000
BATCH, LENGTH = 16, 256
WIDTH, LAYERS, VOCABULARY = 384, 6, 8192


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 6, 4 * WIDTH, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.head(self.layers(self.embed(tokens), mask, is_causal=True))


class Averages:
    """The same exponential average of a module by each tool, and how each is brought up to date."""

    def __init__(self, module: nn.Module):
        self.module, parameters = module, list(module.parameters())
        self._ours = Averager(module, ema(DECAY))
        self._model = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
        self._loop = [parameter.detach().clone() for parameter in parameters]

        @torch.no_grad()
        def lerp() -> None:
            torch._foreach_lerp_(self._loop, parameters, 1 - DECAY)

        self.updates: dict[str, Callable[[], object]] = {
            "fastmerge": self._ours.update,
            "AveragedModel": lambda: self._model.update_parameters(module),
            "lerp": lerp,
        }
        # The first update of the two is a copy, which the loop has.
        self.updates["fastmerge"]()
        self.updates["AveragedModel"]()

    def step(self) -> None:
        for update in self.updates.values():
            update()

    def first(self) -> dict[str, Tensor]:
        """Return the average of the first parameter by tool."""
        averaged = next(self._model.module.parameters()).detach()
        ours = next(iter(self._ours.weights().values()))
        return {"fastmerge": ours, "AveragedModel": averaged, "lerp": self._loop[0]}


def errors_of(steps: int) -> dict[str, float]:
    """Return how far each is from float64 after steps of a random walk, by the norm of the average."""
    torch.manual_seed(0)
    weight = nn.Parameter(0.02 * torch.randn(1 << 14))
    averages, products, exact = Averages(nn.ParameterList([weight])), weight.detach().clone(), weight.detach().double()
    for _ in range(steps):
        with torch.no_grad():
            weight += 2e-6 * torch.randn_like(weight)
            products.mul_(DECAY).add_(weight, alpha=1 - DECAY)
            exact.mul_(DECAY).add_(weight.double(), alpha=1 - DECAY)
        averages.step()
    found = averages.first() | {"two products": products}
    return {tool: ((given.double() - exact).norm() / exact.norm()).item() for tool, given in found.items()}


def same_bits_of() -> dict[str, float]:
    """Return the share of elements with the bits of ``torch._foreach_lerp_``, after one update of the same state."""
    torch.manual_seed(1)
    weight = nn.Parameter(torch.randn(1 << 20))
    averages = Averages(nn.ParameterList([weight]))
    with torch.no_grad():
        weight += 0.1 * torch.randn_like(weight)
    averages.step()
    bits = {tool: values.view(torch.int32) for tool, values in averages.first().items()}
    return {tool: (values == bits["lerp"]).double().mean().item() for tool, values in bits.items()}


def measure(runs: int, budget: float) -> list[dict[str, object]]:
    """Return a row per contender, one for a step of training, and one for the error of two products."""
    torch.manual_seed(0)
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH))

    def step() -> None:
        logits = model(tokens)[:, :-1].flatten(0, 1)
        nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    tools = {"step": step, **Averages(model).updates}
    for run in [*tools.values()] * 2:
        run()
    seconds = _measure.take_turns({name: _measure.timed(run) for name, run in tools.items()}, runs, budget)
    errors, equal, whole = errors_of(STEPS), same_bits_of(), 4 * sum(p.numel() for p in model.parameters())
    times = {tool: _measure.time_columns(taken) for tool, taken in seconds.items()}
    none = {"runs": 0, "ms": "", "ms_q20": "", "ms_q80": ""}
    return [
        {
            "op": "ema", "tool": tool, "shape": f"transformer-{whole // 4_000_000}m", "dtype": "float32",
            **times.get(tool, none), "tokens": tokens.numel(), "error": errors.get(tool, ""),
            "of_step": times[tool]["ms"] / times["step"]["ms"] if tool in times else "",
            "same_bits": equal.get(tool, ""), "bytes": "" if tool == "step" else whole,
        }
        for tool in (*times, "two products")
    ]  # fmt: skip


def show(rows: Sequence[Mapping[str, object]]) -> None:
    """Print a table: time of an update, its share of a step, how far it is from float64 and from lerp."""
    print(f"{rows[0]['shape']}, {rows[0]['tokens']} tokens a step, decay {DECAY}")
    print("| | ms (20 to 80 %) | of a step | from float64 | bits of lerp |\n|---|---|---|---|---|")
    for row in rows:
        time = f"{row['ms']:.2f} ({row['ms_q20']:.2f} to {row['ms_q80']:.2f})" if row["runs"] else ""
        share = f"{100 * float(str(row['of_step'])):.3f} %" if row["runs"] else ""
        error = f"{row['error']:.1e}" if row["error"] != "" else ""
        same = f"{100 * float(str(row['same_bits'])):.1f} %" if row["same_bits"] != "" else ""
        print(f"| {row['tool']} | {time} | {share} | {error} | {same} |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.averager", description=__doc__)
    parser.add_argument("--runs", type=int, default=9, help="most runs of each contender")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of runs after which a contender stops")
    parser.add_argument("--csv", type=Path, default=_record.DATA / "averager.csv")
    options = parser.parse_args()
    rows = measure(options.runs, options.budget)
    show(rows)
    facts = _record.run_facts(torch.get_num_threads())
    _record.append(options.csv, COLUMNS, [facts | row for row in rows])


if __name__ == "__main__":
    main()
