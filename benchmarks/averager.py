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


class Lerp:
    """An average as a loop makes it."""

    def __init__(self, parameters: list[Tensor]):
        self.parameters = parameters
        self.state = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self.state, self.parameters, 1 - DECAY)


def errors_of(steps: int) -> dict[str, float]:
    """Return how far each is from float64 after steps of a random walk, by the norm of the average."""
    torch.manual_seed(0)
    weight = nn.Parameter(0.02 * torch.randn(1 << 14))
    holder = nn.ParameterList([weight])
    averager, model = Averager(holder, ema(DECAY)), AveragedModel(holder, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    loop, products, exact = Lerp([weight]), weight.detach().clone(), weight.detach().double()
    averager.update()
    model.update_parameters(holder)
    for _ in range(steps):
        with torch.no_grad():
            weight += 2e-6 * torch.randn_like(weight)
            products.mul_(DECAY).add_(weight, alpha=1 - DECAY)
            exact.mul_(DECAY).add_(weight.double(), alpha=1 - DECAY)
        averager.update()
        model.update_parameters(holder)
        loop.update()
    found = {
        "fastmerge": averager.weights()["0"], "AveragedModel": next(model.module.parameters()), "lerp": loop.state[0],
        "two products": products,
    }  # fmt: skip
    return {tool: ((given.double() - exact).norm() / exact.norm()).item() for tool, given in found.items()}


def same_bits_of() -> dict[str, float]:
    """Return the share of elements with the bits of ``torch._foreach_lerp_``, after one update of the same state."""
    torch.manual_seed(1)
    weight = nn.Parameter(torch.randn(1 << 20))
    holder = nn.ParameterList([weight])
    averager, model = Averager(holder, ema(DECAY)), AveragedModel(holder, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    loop = Lerp([weight])
    averager.update()
    model.update_parameters(holder)
    with torch.no_grad():
        weight += 0.1 * torch.randn_like(weight)
    averager.update()
    model.update_parameters(holder)
    loop.update()
    found = {"fastmerge": averager.weights()["0"], "AveragedModel": next(model.module.parameters()).detach()}
    bits = {tool: values.view(torch.int32) for tool, values in (found | {"lerp": loop.state[0]}).items()}
    return {tool: (values == bits["lerp"]).double().mean().item() for tool, values in bits.items()}


def measure(batch: int, length: int, runs: int, budget: float) -> list[dict[str, object]]:
    """Return a row per contender, and one for a step of training."""
    torch.manual_seed(0)
    model = Transformer()
    parameters: list[Tensor] = list(model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    tokens = torch.randint(VOCABULARY, (batch, length))

    def step() -> None:
        logits = model(tokens)[:, :-1].flatten(0, 1)
        nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    averager, averaged, loop = Averager(model, ema(DECAY)), AveragedModel(model), Lerp(parameters)
    averaged.multi_avg_fn = get_ema_multi_avg_fn(DECAY)
    tools: dict[str, Callable[[], object]] = {
        "step": step, "fastmerge": averager.update, "AveragedModel": lambda: averaged.update_parameters(model),
        "lerp": loop.update,
    }  # fmt: skip
    for run in [*tools.values()] * 2:
        run()
    seconds = _measure.take_turns({name: _measure.timed(run) for name, run in tools.items()}, runs, budget)
    errors, equal, whole = errors_of(STEPS), same_bits_of(), 4 * sum(parameter.numel() for parameter in parameters)
    rows: list[dict[str, object]] = []
    for tool, taken in seconds.items():
        rows.append({
            "op": "ema", "tool": tool, "shape": f"transformer-{whole // 4_000_000}m", "dtype": "float32",
            **_measure.time_columns(taken), "tokens": batch * length, "error": errors.get(tool, ""),
            "same_bits": equal.get(tool, ""), "bytes": "" if tool == "step" else whole,
        })  # fmt: skip
    for row in rows:
        row["of_step"] = float(str(row["ms"])) / float(str(rows[0]["ms"]))
    return [*rows, {**rows[1], "tool": "two products", "runs": 0, "ms": "", "ms_q20": "", "ms_q80": "", "of_step": "",
                    "error": errors["two products"], "same_bits": ""}]  # fmt: skip


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
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--runs", type=int, default=9, help="most runs of each contender")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of runs after which a contender stops")
    parser.add_argument("--csv", type=Path, default=_record.DATA / "averager.csv")
    options = parser.parse_args()
    rows = measure(options.batch, options.length, options.runs, options.budget)
    show(rows)
    facts = _record.run_facts(torch.get_num_threads())
    _record.append(options.csv, COLUMNS, [facts | row for row in rows])


if __name__ == "__main__":
    main()
