"""The same merges as a careful user of PyTorch would write them: the peer of the kernels.

All take ``[base, *experts]`` and the parameters of the case, work in the storage dtype where that is the faster choice,
and return a new tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..accuracy import formulas, spectral
from ..accuracy.formulas import FORMULAS
from .cases import Case


def linear(tensors: Sequence[Tensor], weight: Sequence[float]) -> Tensor:
    """Weighted average, summed in the storage dtype: six times as fast as in float32, and less exact."""
    total = sum(weight)
    merged = tensors[0] * (weight[0] / total)
    for tensor, w in zip(tensors[1:], weight[1:], strict=True):
        merged.add_(tensor, alpha=w / total)
    return merged


def slerp(tensors: Sequence[Tensor], t: float) -> Tensor:
    """Spherical interpolation of two flattened tensors; linear when they are almost parallel."""
    a, b = tensors[0].float(), tensors[1].float()
    cosine = torch.dot(a, b) / (a.norm() * b.norm())
    if cosine.abs() > 0.9995:
        return torch.lerp(a, b, t).to(tensors[0].dtype)
    angle = torch.arccos(cosine)
    merged = a * (torch.sin((1 - t) * angle) / torch.sin(angle)) + b * (torch.sin(t * angle) / torch.sin(angle))
    return merged.to(tensors[0].dtype)


def ties(tensors: Sequence[Tensor], weight: Sequence[float], density: Sequence[float]) -> Tensor:
    """Trim each delta to its largest magnitudes by ``topk``, elect signs, average what agrees."""
    base, experts = tensors[0], tensors[1:]
    deltas = torch.stack([expert - base for expert in experts])
    for delta, share in zip(deltas, density, strict=True):
        kept = delta.abs().topk(int(share * delta.numel()), sorted=False).indices
        mask = torch.zeros_like(delta, dtype=torch.bool)
        mask[kept] = True
        delta.mul_(mask)
    return base + _elected_mean(deltas, weight)


def dare_ties(tensors: Sequence[Tensor], weight: Sequence[float], density: Sequence[float]) -> Tensor:
    """Drop at random (by ``rand``, faster than ``bernoulli_``), rescale to the norm before, elect signs, sum."""
    base, experts = tensors[0], tensors[1:]
    deltas = torch.stack([expert - base for expert in experts])
    for delta, share in zip(deltas, density, strict=True):
        before = delta.abs().sum(dtype=torch.float32)
        delta.mul_(torch.rand(delta.shape, device=delta.device) < share)
        delta.mul_(before / delta.abs().sum(dtype=torch.float32))
    return base + _elected_mean(deltas, weight, normalize=False)


def della(tensors: Sequence[Tensor], weight: Sequence[float], density: Sequence[float]) -> Tensor:
    """Keep with a probability that rises with the rank in the row (two ``argsort``), rescale, elect signs, average."""
    base, experts = tensors[0], tensors[1:]
    deltas = torch.stack([expert - base for expert in experts])
    rise = torch.linspace(-0.15, 0.15, base.shape[-1], device=base.device)
    for delta, share in zip(deltas, density, strict=True):
        before = delta.abs().sum(dtype=torch.float32)
        ranks = delta.abs().argsort(-1).argsort(-1)
        delta.mul_(torch.rand(delta.shape, device=delta.device) < share + rise[ranks])
        delta.mul_(before / delta.abs().sum(dtype=torch.float32))
    return base + _elected_mean(deltas, weight)


def _elected_mean(deltas: Tensor, weight: Sequence[float], normalize: bool = True) -> Tensor:
    weights = torch.tensor(weight, dtype=deltas.dtype, device=deltas.device).view(-1, *[1] * (deltas.dim() - 1))
    deltas.mul_(weights)
    agrees = deltas.sign() == torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
    merged = (deltas * agrees).sum(0)
    if normalize:
        divisor = (agrees * weights).sum(0)
        merged /= torch.where(divisor == 0, 1, divisor)
    return merged


MERGES = {"linear": linear, "slerp": slerp, "ties": ties, "dare_ties": dare_ties, "della": della}


def by_formula(case: Case) -> Callable[..., Tensor]:
    """Return the formula of a method, written for reading, as a merge of tensors in their dtype.

    Decompositions are in float32: there are none in less.
    """
    formula = FORMULAS[case.method]
    wide = formula.__module__ == spectral.__name__

    def merge(tensors: Sequence[Tensor], **_: object) -> Tensor:
        dtype = tensors[0].dtype
        tensors = [tensor.float() for tensor in tensors] if wide else tensors
        base, experts = (tensors[0], tensors[1:]) if case.has_base else (None, tensors)
        deltas = [] if base is None else [expert - base for expert in experts]
        values = case.group("benchmark.weight", experts[0].shape).values
        masks = [torch.rand(d.shape, device=d.device) < 0.5 for d in deltas] if case.random else []
        return formula(formulas.Case(base, experts, deltas, values, masks)).to(dtype)

    return merge
