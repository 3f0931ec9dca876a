"""mergekit's arithmetic step by step, rounded to its dtype after each, on blocks that stay in the cache.

The formulas are those of mergekit 0.1.4 and 0.1.5 where they agree. Selections are made by our kernels: of equal
magnitudes at a threshold the first are kept, where mergekit's sort picks some.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ... import kernels
from ..calls import Uncovered
from ..masks import draw

if TYPE_CHECKING:
    from .merging import Call

TINY = 1e-7
"""mergekit leaves a delta alone when one of its L1 norms is below this."""

_BLOCK = 1 << 16


def linear(call: Call) -> Tensor:
    """Return the weighted mean as mergekit adds it up: by fused multiply-adds in float32, in 0.1.4 by separate ones."""
    out = torch.empty_like(call.tensors[0])
    flats, flat = [tensor.view(-1) for tensor in call.tensors], out.view(-1)
    weights, normalize = call.parameters["weight"], call.parameters.get("normalize", True)
    factors = torch.tensor(weights, dtype=out.dtype if call.old_linear else torch.float32, device=out.device)
    divisor = factors.sum()
    for start in range(0, flat.numel(), _BLOCK):
        blocks = [tensor[start : start + _BLOCK] for tensor in flats]
        if call.old_linear:
            merged = (factors.unsqueeze(-1) * torch.stack(blocks)).sum(dim=0)
        else:
            merged = torch.zeros_like(blocks[0], dtype=torch.float32)
            for block, factor in zip(blocks, factors, strict=True):
                merged.addcmul_(block, factor)
        flat[start : start + _BLOCK] = merged / divisor if normalize else merged
    return out


def nearswap(call: Call) -> Tensor:
    """Return the model where it is within ``t`` of the base, else a mean of both that moves by ``t``."""
    assert call.base is not None, "nearswap has one"
    out = torch.empty_like(call.base)
    base, model, flat, t = call.base.view(-1), call.tensors[0].view(-1), out.view(-1), call.parameters["t"]
    for start in range(0, flat.numel(), _BLOCK):
        a, b = base[start : start + _BLOCK], model[start : start + _BLOCK]
        weight = (t / torch.abs(a - b).clamp(min=1e-6)).clamp(min=0, max=1)
        flat[start : start + _BLOCK] = weight * b + (1 - weight) * a
    return out


def tasks(call: Call) -> Tensor:
    """Return the merge of a method on deltas: sparsified, weighted, elected, divided, scaled, added to the base."""
    assert call.base is not None, "these methods have one"
    base, parameters = call.base.view(-1), call.parameters
    deltas = base.new_empty((len(call.tensors), base.numel()))
    for k, tensor in enumerate(call.tensors):
        torch.sub(tensor.view(-1), base, out=deltas[k])
        if call.method != "task_arithmetic" and parameters["density"][k] < 1:
            deltas[k] = _sparse(call, k, deltas[k])
    weights = torch.tensor(parameters["weight"], dtype=base.dtype, device=base.device).unsqueeze(-1)
    votes = call.method in ("ties", "dare_ties", "breadcrumbs_ties")
    out = torch.empty_like(call.base)
    flat = out.view(-1)
    for start in range(0, flat.numel(), _BLOCK):
        part = slice(start, start + _BLOCK)
        block = deltas[:, part] * weights
        if votes:
            positive = block.sum(dim=0) >= 0
            agrees = block.sign() == torch.where(positive, 1, -1).to(block.dtype)
            merged, divisor = (block * agrees).sum(dim=0), (weights * agrees).sum(dim=0)
            divisor[divisor == 0] = 1
        else:
            merged, divisor = block.sum(dim=0), weights.sum(dim=0)
            divisor[divisor.abs() < 1e-8] = 1
        if parameters["normalize"]:
            merged /= divisor
        if parameters["lambda"] != 1:
            merged *= parameters["lambda"]
        flat[part] = base[part] + merged
    return out


def _sparse(call: Call, k: int, delta: Tensor) -> Tensor:
    """Return one delta without what its method drops, and with its L1 norm where that is asked for."""
    density, count = call.parameters["density"][k], delta.numel()
    kept: Tensor | None
    if call.method.startswith("dare_"):
        if delta.dtype is torch.float16:
            delta = delta.float()
        kept = draw(call.tensors[k], density).kept.to(delta.device)
    elif call.method == "ties":
        kept = _ranked(delta, max(1, int(density * count)), 0) if density > 0 else torch.zeros_like(delta).bool()
    else:
        target = int(density * count)
        bottom = max(0, count - target - int(call.parameters["gamma"][k] * count))
        kept = _ranked(delta, count - bottom, count - bottom - target)
    sparse = delta * kept
    if call.parameters["rescale"]:
        before, after = delta.abs().sum(), sparse.abs().sum()
        if not (before < TINY or after < TINY):
            sparse = sparse * (before / after)
    return sparse


def _ranked(delta: Tensor, inside: int, outside: int) -> Tensor:
    """Return where magnitudes of a flat delta are among the ``inside`` largest, not the ``outside`` largest."""
    if bool(delta.isnan().any()):
        raise Uncovered("a delta holds NaN")
    magnitudes = delta.abs().float()
    ((low, high),) = kernels.select_boundaries([delta], None, [[inside, outside]])
    return _above(magnitudes, low) & ~_above(magnitudes, high)


def _above(magnitudes: Tensor, boundary: kernels.Boundary) -> Tensor:
    if boundary == kernels.EVERYTHING:
        return torch.ones_like(magnitudes, dtype=torch.bool)
    if boundary == kernels.NOTHING:
        return torch.zeros_like(magnitudes, dtype=torch.bool)
    bits = magnitudes.view(torch.int32)
    above, first = bits > boundary.threshold, slice(boundary.break_index)
    above[first] |= bits[first] == boundary.threshold
    return above
