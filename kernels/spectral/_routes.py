r"""Routes from a matrix to its spectral map, from fast to certain. Each certifies its result or leaves it to the next.

accurate   polar factor by polynomial iteration, leading triplets by subspace iteration: the route of a GPU
exact      Gram matrix and its eigenvectors in float64: on a CPU no slower than the next
svd        torch.linalg.svd in float32; in float64 as the last resort
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ._by_products import by_products
from ._exact import Outcome, by_gram, by_svd
from ._info import Info
from ._matrices import check_choice, check_matrices, full_float32
from ._rules import Rules

METHODS = ("auto", "accurate", "exact", "svd")
NULLS = ("keep", "reference")


def spectral_map(x: Tensor, rules: Rules, null: str, method: str) -> tuple[Tensor, list[Info]]:
    """Apply ``rules`` to the singular values of the matrices ``x`` [..., m, n]; arguments as in ``subspace_boost``."""
    largest = check_matrices("x", x)
    check_choice("method", method, METHODS)
    check_choice("null", null, NULLS)
    m, n = x.shape[-2:]
    flat = x.reshape(len(largest), m, n)
    tall = flat if m >= n else flat.mT
    out, infos = None, [Info("zero")] * len(flat)
    pending = [index for index, size in enumerate(largest) if size]
    with full_float32():
        for route in _routes(x.device, null == "keep", method):
            if not pending:
                break
            some = tall if len(pending) == len(tall) else tall[pending]
            result, details, accepted = route(some, [rules[index] for index in pending])
            if some is tall and all(accepted):
                out, infos = result, details
                break
            out = torch.zeros_like(tall) if out is None else out
            for position, index in enumerate(pending):
                if accepted[position]:
                    out[index], infos[index] = result[position], details[position]
            pending = [index for index, done in zip(pending, accepted, strict=True) if not done]
            del result  # the next route needs the memory
    out = torch.zeros_like(tall) if out is None else out
    return (out if m >= n else out.mT.contiguous()).reshape(x.shape), infos


def _routes(device: torch.device, keep: bool, method: str) -> Sequence[Callable[[Tensor, Rules], Outcome]]:
    accurate, exact = partial(by_products, keep=keep), partial(by_gram, keep=keep)
    svd, svd64 = (partial(by_svd, dtype=dtype, keep=keep) for dtype in (torch.float32, torch.float64))
    last = [exact, svd64] if keep else [exact, svd64, svd]
    if method == "auto":
        # On a CPU the eigenvectors of a Gram matrix in float64 take as long as LAPACK's divide and conquer in float32,
        # or less on several cores, and are 50 times as exact or more, unless the matrix is nearly singular. On a GPU,
        # products are faster.
        if device.type == "cpu":
            return [exact, svd, svd64]
        method = "accurate"
    return {"accurate": [accurate, *last], "exact": last, "svd": [svd, *last]}[method]
