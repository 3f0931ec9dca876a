r"""Routes from a matrix to its spectral map, from fast to certain. Each certifies its result or leaves it to the next.

accurate   polar factor by polynomial iteration, leading triplets by subspace iteration: the route of a GPU
exact      Gram matrix and its eigenvectors in float64: on a CPU no slower than the next
svd        torch.linalg.svd in float32; in float64 as the last resort
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ._by_products import by_products
from ._exact import Outcome, by_gram, by_svd
from ._info import Info
from ._matrices import check_choice, check_matrices, full_float32
from ._rules import Rule, Rules, rules_for

METHODS = ("auto", "accurate", "exact", "svd")
NULLS = ("keep", "reference")


def spectral_map(x: Tensor, rule: Rule | Rules, *, tol: float, null: str, method: str) -> tuple[Tensor, list[Info]]:
    """Apply ``rule`` to the singular values of each matrix of ``x`` [..., m, n]; arguments as in ``subspace_boost``."""
    check_matrices("x", x)
    if method == "fast":
        raise ValueError("method is 'fast', which is gone; use 'accurate', as exact as a float32 SVD")
    check_choice("method", method, METHODS)
    check_choice("null", null, NULLS)
    if not tol > 0:
        raise ValueError(f"tol is {tol}; expected a positive relative error")
    m, n = x.shape[-2:]
    if not x.numel():
        return x.clone(), [Info("zero")] * math.prod(x.shape[:-2])
    flat = x.reshape(-1, m, n)
    tall = flat if m >= n else flat.mT
    out = torch.zeros_like(tall)
    infos = [Info("zero")] * len(flat)
    pending = (flat != 0).flatten(1).any(dim=1).nonzero().flatten().tolist()
    rules = rules_for(rule, len(flat))
    with full_float32():
        for route in _routes(x.device, tol, null, method):
            if not pending:
                break
            some = tall if len(pending) == len(tall) else tall[pending]
            result, details, accepted = route(some, [rules[index] for index in pending])
            for position, index in enumerate(pending):
                if accepted[position]:
                    out[index], infos[index] = result[position], details[position]
            pending = [index for index, done in zip(pending, accepted, strict=True) if not done]
            del result  # the next route needs the memory
    return (out if m >= n else out.mT.contiguous()).reshape(x.shape), infos


def _routes(device: torch.device, tol: float, null: str, method: str) -> Sequence[Callable[[Tensor, Rules], Outcome]]:
    keep = null == "keep"

    def exact(x: Tensor, rules: Rules) -> Outcome:
        return by_gram(x, rules, tol, keep)

    def svd(x: Tensor, rules: Rules) -> Outcome:
        return by_svd(x, rules, torch.float32, keep, fill=not keep)

    def svd64(x: Tensor, rules: Rules) -> Outcome:
        return by_svd(x, rules, torch.float64, keep)

    last = [exact, svd64] if keep else [exact, svd64, svd]
    if method == "auto":
        # On a CPU the eigenvectors of a Gram matrix in float64 take as long as LAPACK's divide and conquer in float32,
        # or less on several cores, and are 50 times as exact or more, unless the matrix is nearly singular. On a GPU,
        # products are faster.
        if device.type == "cpu":
            return [exact, svd, svd64]
        method = "accurate" if tol >= 1e-5 else "exact"
    if method == "exact":
        return last
    if method == "svd":
        return [svd, *last]
    return [lambda x, rules: by_products(x, rules, keep), *last]
