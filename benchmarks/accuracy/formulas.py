"""Formulas of the methods that work element by element or on norms, written out for tensors of any dtype.

A formula sees ``Case`` with the deltas as float32 rounds them, as every tool takes them, and the masks of random
methods. It notes where its result is certain: not where more elements equal a threshold than may stay, of which every
tool keeps those it likes, and not where a vote is so near 0 that its rounding elects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Case:
    """The inputs of a merge in the dtype of the evaluation, its parameters, and what a random method drew."""

    base: Tensor | None
    tensors: Sequence[Tensor]
    deltas: Sequence[Tensor]
    values: dict[str, Any]
    masks: Sequence[Tensor] = ()
    certain: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.certain = torch.ones_like(self.tensors[0], dtype=torch.bool)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)

    @property
    def weights(self) -> Sequence[float]:
        return self.get("weight") or [1.0] * len(self.tensors)

    @property
    def scale(self) -> float:
        return self.get("lambda", 1.0)


FORMULAS: dict[str, Callable[[Case], Tensor]] = {}


def formula(*names: str) -> Callable[[Callable[[Case], Tensor]], Callable[[Case], Tensor]]:
    def add(function: Callable[[Case], Tensor]) -> Callable[[Case], Tensor]:
        FORMULAS.update(dict.fromkeys(names, function))
        return function

    return add


@formula("linear")
def linear(c: Case) -> Tensor:
    return sum(w * x for w, x in zip(c.weights, c.tensors, strict=True)) / sum(c.weights)


@formula("passthrough")
def passthrough(c: Case) -> Tensor:
    return c["scale"][0] * c.tensors[0]


@formula("task_arithmetic")
def task_arithmetic(c: Case) -> Tensor:
    return c.base + c.scale * sum(w * d for w, d in zip(c.weights, c.deltas, strict=True))


@formula("expo")
def expo(c: Case) -> Tensor:
    return c.base + (1 + c["alpha"]) * c.deltas[0]


def largest(c: Case, delta: Tensor, count: int) -> Tensor:
    """Return where the ``count`` largest magnitudes lie, lowest index first, and note where that is not certain."""
    magnitudes = delta.abs().flatten()
    order = magnitudes.sort(descending=True, stable=True)
    kept = torch.zeros_like(magnitudes, dtype=torch.bool)
    kept[order.indices[:count]] = True
    if 0 < count < len(magnitudes) and order.values[count - 1] == order.values[count]:
        c.certain &= (magnitudes != order.values[count]).view(delta.shape)
    return kept.view(delta.shape)


def trimmed(c: Case, least: int) -> list[Tensor]:
    counts = [max(least, int(density * d.numel())) for density, d in zip(c["density"], c.deltas, strict=True)]
    return [d * largest(c, d, count) for d, count in zip(c.deltas, counts, strict=True)]


def voted(c: Case, terms: Sequence[Tensor]) -> Tensor:
    """Return the sign of the sum of the terms, + where it is 0."""
    total, size = sum(terms), sum(term.abs() for term in terms)
    c.certain &= (total.abs() > 1e-6 * size) | (size == 0)
    return torch.where(total >= 0, 1.0, -1.0)


def elected(c: Case, terms: Sequence[Tensor], divide: bool = True) -> Tensor:
    """Return the sum of the terms that have the sign of their sum, over that of their weights."""
    sign = voted(c, terms)
    agrees = [(term.sign() == sign).to(term.dtype) for term in terms]
    total = sum(term * mask for term, mask in zip(terms, agrees, strict=True))
    weight = sum(w * mask for w, mask in zip(c.weights, agrees, strict=True))
    return total / weight.where(weight != 0, 1.0) if divide else total


def weighted(c: Case, deltas: Sequence[Tensor]) -> list[Tensor]:
    return [w * d for w, d in zip(c.weights, deltas, strict=True)]


@formula("ties")
def ties(c: Case) -> Tensor:
    return c.base + c.scale * elected(c, weighted(c, trimmed(c, 1)))


@formula("magnitude_prune")
def magnitude_prune(c: Case) -> Tensor:
    return c.base + c.scale * sum(weighted(c, trimmed(c, 0)))


def dropped(c: Case) -> list[Tensor]:
    """Return the deltas that were drawn, with the L1 norms they had."""
    kept = [d * mask for d, mask in zip(c.deltas, c.masks, strict=True)]
    return [k * (d.abs().sum() / k.abs().sum()) for d, k in zip(c.deltas, kept, strict=True)]


@formula("dare_linear", "della_linear")
def dare_linear(c: Case) -> Tensor:
    return c.base + c.scale * sum(weighted(c, dropped(c)))


@formula("dare_ties")
def dare_ties(c: Case) -> Tensor:
    return c.base + c.scale * elected(c, weighted(c, dropped(c)), divide=False)


@formula("della")
def della(c: Case) -> Tensor:
    return c.base + c.scale * elected(c, weighted(c, dropped(c)))


def banded(c: Case) -> list[Tensor]:
    bands = []
    for delta, density, gamma in zip(c.deltas, c["density"], c["gamma"], strict=True):
        outliers = int(gamma * delta.numel())
        inside = largest(c, delta, outliers + int(density * delta.numel()))
        bands.append(delta * (inside & ~largest(c, delta, outliers)))
    return bands


@formula("breadcrumbs")
def breadcrumbs(c: Case) -> Tensor:
    return c.base + c.scale * sum(weighted(c, banded(c)))


@formula("breadcrumbs_ties")
def breadcrumbs_ties(c: Case) -> Tensor:
    return c.base + c.scale * elected(c, weighted(c, banded(c)), divide=False)


def arc(a: Tensor, b: Tensor, t: float, line: float) -> Tensor:
    cosine = ((a * b).sum() / (a.norm() * b.norm())).clamp(-1, 1)
    if cosine.abs() >= line:
        return (1 - t) * a + t * b
    angle = cosine.acos()
    return (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()


@formula("slerp")
def slerp(c: Case) -> Tensor:
    return arc(c.base, c.tensors[0], c["t"], 0.9995)


@formula("nuslerp")
def nuslerp(c: Case) -> Tensor:
    return arc(*c.tensors, c.weights[1] / sum(c.weights), 1 - 1e-16)


@formula("multislerp")
def multislerp(c: Case) -> Tensor:
    shares = [w / sum(c.weights) for w in c.weights]
    norms = [x.norm() for x in c.tensors]
    mean = sum(w * x / (n + c["eps"]) for w, x, n in zip(shares, c.tensors, norms, strict=True))
    return sum(w * n for w, n in zip(shares, norms, strict=True)) * mean / mean.norm()


@formula("karcher")
def karcher(c: Case) -> Tensor:
    units = [x / x.norm() for x in c.tensors]
    mean = sum(units) / len(units)
    mean = mean / mean.norm()
    for _ in range(c["max_iter"]):
        step = torch.zeros_like(mean)
        for unit in units:
            cosine = (unit * mean).sum().clamp(-1, 1)
            angle = cosine.acos()
            if angle >= c["tol"]:
                step = step + angle / angle.sin() * (unit - cosine * mean) / len(units)
        size = step.norm()
        if size < c["tol"]:
            break
        mean = size.cos() * mean + size.sin() * step / size
        mean = mean / mean.norm()
    return sum(x.norm() for x in c.tensors) / len(units) * mean


@formula("model_stock")
def model_stock(c: Case) -> Tensor:
    n = len(c.deltas)
    cosines = [
        (a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-6) for i, a in enumerate(c.deltas) for b in c.deltas[:i]
    ]
    cosine = sum(cosines) / len(cosines)
    t = n * cosine / (1 + (n - 1) * cosine)
    return c.base + t * sum(c.deltas) / n


@formula("sce")
def sce(c: Case) -> Tensor:
    stacked = torch.stack(list(c.deltas))
    variance = ((stacked - stacked.mean(0)) ** 2).mean(0)
    count = int(torch.tensor(float(variance.count_nonzero())) * c["select_topk"])
    kept = largest(c, variance, count)
    c.certain &= (variance - variance[kept].min()).abs() > 1e-5 * variance
    stacked = stacked * kept
    squares = (stacked**2).flatten(1).mean(1)
    weights = squares / squares.sum() if squares.sum() >= 1e-6 else torch.full_like(squares, 1 / len(squares))
    agrees = stacked.sign() == voted(c, list(stacked))
    weights = weights.view(-1, *[1] * (stacked.dim() - 1)) * agrees
    return c.base + (stacked * weights).sum(0) / weights.sum(0).clamp(min=1e-6)


@formula("nearswap")
def nearswap(c: Case) -> Tensor:
    (delta,) = c.deltas
    return c.base + (c["t"] / delta.abs().clamp(min=1e-6)).clamp(max=1) * delta


@formula("arcee_fusion")
def arcee_fusion(c: Case) -> Tensor:
    p, q = c.tensors[0].softmax(-1) + 1e-8, c.base.softmax(-1) + 1e-8
    scores = c.deltas[0].abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    scores = scores if scores.dtype is torch.float64 else scores.float()
    q1, q2, q3 = scores.flatten().quantile(scores.new_tensor([0.25, 0.5, 0.75]))
    return c.base + c.deltas[0] * (scores >= q2 + 1.5 * (q3 - q1))


def shared(c: Case) -> tuple[list[Tensor], Tensor]:
    changed = [d.abs() > torch.tensor(c["epsilon"], dtype=torch.float32) for d in c.deltas]
    return changed, sum(mask.to(c.deltas[0].dtype) for mask in changed)


@formula("ram")
def ram(c: Case) -> Tensor:
    changed, count = shared(c)
    return c.base + sum(d * mask for d, mask in zip(c.deltas, changed, strict=True)) / count.clamp(min=1)


@formula("ramplus_tl")
def ramplus_tl(c: Case) -> Tensor:
    changed, count = shared(c)
    total = torch.zeros_like(c.base)
    for delta, mask in zip(c.deltas, changed, strict=True):
        unique = (mask & (count == 1)).sum()
        ratio = ((mask & (count > 1)).sum() / unique.clamp(min=1e-30)).clamp(max=c["alpha"]).item()
        total = total + delta * mask * torch.where(count == 1, 1 + c["r"] * ratio, 1.0)
    return c.base + total / count.clamp(min=1)


@formula("magmax")
def magmax(c: Case) -> Tensor:
    stacked = torch.stack(weighted(c, c.deltas))
    lowest, highest = stacked.amin(0), stacked.amax(0)
    c.certain &= (lowest + highest).abs() > 1e-6 * (highest - lowest)
    return c.base + c.scale * torch.where(-lowest > highest, lowest, highest)


@formula("emr")
def emr(c: Case) -> Tensor:
    sign = -voted(c, [-d for d in c.deltas])
    agrees = [(d.sign() == sign).to(d.dtype) for d in c.deltas]
    unified = sign * torch.stack([d.abs() * mask for d, mask in zip(c.deltas, agrees, strict=True)]).amax(0)
    kept = unified * agrees[c["task"]]
    return c.base + c.deltas[c["task"]].abs().mean() / kept.abs().mean() * kept


def needed(c: Case, total: Tensor, terms: Sequence[Tensor]) -> list[Tensor]:
    return [t.abs() > share * (total - t).abs() for t, share in zip(terms, c["mask_lambda"], strict=True)]


@formula("consensus")
def consensus(c: Case) -> Tensor:
    terms = weighted(c, c.deltas)
    total = sum(terms)
    return c.base + c.scale * total * (sum(mask.int() for mask in needed(c, total, terms)) >= c["threshold"])


@formula("tall_mask")
def tall_mask(c: Case) -> Tensor:
    terms = weighted(c, c.deltas)
    total = sum(terms)
    return c.base + c.scale * total * needed(c, total, terms)[c["task"]]
