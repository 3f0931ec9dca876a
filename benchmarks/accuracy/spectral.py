"""Formulas of the methods on singular values, by plain decompositions in the dtype of the evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from .formulas import Case, elected, formula, trimmed, weighted


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.linalg.svd(matrix, full_matrices=False)


def polar(blocks: list[Tensor]) -> Tensor:
    u, _, vh = svd(torch.cat(blocks, dim=1))
    return u @ vh


def boosted(delta: Tensor, beta: float) -> Tensor:
    u, s, vh = svd(delta)
    first = int((s.cumsum(0) >= beta * s.sum()).nonzero()[0])
    return (u * s.clamp(min=s[first])) @ vh


@formula("task_arithmetic_sb")
def task_arithmetic_sb(c: Case) -> Tensor:
    return c.base + boosted(c.scale * sum(weighted(c, c.deltas)), c["beta"])


@formula("ties_sb")
def ties_sb(c: Case) -> Tensor:
    return c.base + boosted(c.scale * elected(c, weighted(c, trimmed(c, 1))), c["beta"])


@formula("iso_c")
def iso_c(c: Case) -> Tensor:
    u, s, vh = svd(sum(weighted(c, c.deltas)))
    return c.base + c.scale * s.mean() * u @ vh


@formula("iso_cts")
def iso_cts(c: Case) -> Tensor:
    terms = weighted(c, c.deltas)
    u, s, vh = svd(sum(terms))
    size, models = len(s), len(terms)
    specific = round((size - int(size * c["common_share"])) / models)
    common = size - models * specific
    lefts, values, rights = [u[:, :common]], [s[:common]], [vh[:common].mT]
    for term in terms:
        rest = term - lefts[0] @ (lefts[0].mT @ term)
        left, value, right = svd(rest)
        lefts.append(left[:, :specific])
        values.append(value[:specific])
        rights.append(right[:specific].mT)
    return c.base + c.scale * torch.cat(values).mean() * polar(lefts) @ polar(rights).mT


@formula("tsvm")
def tsvm(c: Case) -> Tensor:
    parts = [svd(term) for term in weighted(c, c.deltas)]
    rank = min(c.base.shape) // len(parts)
    left, right = polar([u[:, :rank] for u, _, _ in parts]), polar([vh[:rank].mT for _, _, vh in parts])
    return c.base + c.scale * (left * torch.cat([s[:rank] for _, s, _ in parts])) @ right.mT


@formula("tsv_c")
def tsv_c(c: Case) -> Tensor:
    u, s, vh = svd(c.deltas[0])
    rank = max(1, int(c["share"] * len(s)))
    return c.base + c.scale * (u[:, :rank] * s[:rank]) @ vh[:rank]


@formula("knots")
def knots(c: Case) -> Tensor:
    """With density 1: the aligned parts are elected, not trimmed."""
    terms = weighted(c, c.deltas)
    u, _, _ = svd(torch.cat(terms, dim=1))
    aligned = [u.mT @ term for term in terms]
    sign = torch.where(sum(aligned) >= 0, 1.0, -1.0)
    agrees = [(part.sign() == sign).to(part.dtype) for part in aligned]
    total = sum(part * mask for part, mask in zip(aligned, agrees, strict=True))
    return c.base + c.scale * u @ (total / sum(agrees).clamp(min=1))
