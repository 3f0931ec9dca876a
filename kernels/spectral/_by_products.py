r"""The route of matrix products: polar factor by polynomial iteration, leading triplets by block Krylov.

The certificates are the orthogonality of P and the symmetry of P'X. They say that the iteration has converged; a matrix
with null directions never passes, because its polar factor is not orthonormal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ._exact import Outcome
from ._info import Info
from ._krylov import BlockKrylov, Triplets
from ._matrices import frobenius
from ._polynomial import polar_factor
from ._products import Products
from ._rules import Cut, Rule, found


@dataclass(frozen=True)
class Settings:
    """Precision and limits of the route.

    Attributes:
        method:        its name in ``Info``.
        precision:     of the products on a GPU.
        cpu_precision: of the products on a CPU, where float16 pieces save no time.
        orth:          the iteration has converged when ||P'P - I||_F / sqrt(n) is below.
        skew:          largest accepted ||skew(P'X)||_F / ||X||_F.
        triplets:      error that the leading triplets may add, relative to the norm of the result.
    """

    method: str
    precision: str
    cpu_precision: str
    orth: float
    skew: float
    triplets: float


ACCURATE = Settings("accurate", "split16", "float32", orth=3e-6, skew=1e-5, triplets=3e-7)
FAST = Settings("fast", "half", "half", orth=5e-3, skew=5e-3, triplets=3e-4)

# The Krylov estimate of the largest singular value is from below, by its residual at most.
HEADROOM = 1.01
BLOCK = 16
# Beyond this many leading triplets, one eigendecomposition of P'X is cheaper than the search.
LARGEST_K = 256
SEARCH_STEPS = 200


def by_products(x: Tensor, rule: Rule, settings: Settings) -> Outcome:
    """Map the singular values of ``x`` [batch, m, n], m >= n, none of them all zeros, by ``rule``."""
    n = x.shape[-1]
    products = Products(settings.precision if x.is_cuda else settings.cpu_precision)
    search = BlockKrylov(x, max(1, min(BLOCK, n // 4)))
    for _ in range(min(3, n)):
        search.expand()
    leading = search.triplets()
    largest = HEADROOM * (leading.values[:, 0] + leading.residuals[:, 0])
    p, iterations, orth = polar_factor(x, largest, products, settings.orth)
    h = products.multiply(p.mT, x)
    skew = (frobenius(h - h.mT) / 2 / frobenius(x)).tolist()
    nuclear = torch.sum(p * x, dim=(-2, -1), dtype=torch.float64).tolist()
    accepted = [o <= settings.orth and s <= settings.skew for o, s in zip(orth, skew, strict=True)]
    infos = [
        Info(settings.method, nuclear=nuclear[i], nullity=0, iterations=iterations, orth=orth[i], skew=skew[i])
        for i in range(len(x))
    ]
    wanted = [i for i, ok in enumerate(accepted) if ok]
    cuts = _search_cuts(search, rule, {i: nuclear[i] for i in wanted}, n, settings.triplets)
    if cuts is None:
        # P'X is the symmetric factor: its eigenvalues are the singular values, not squared.
        values, v = torch.linalg.eigh((h + h.mT) / 2)
        values, v = values.flip(-1).double().cpu(), v.flip(-1)
        cuts = {i: found(rule.cut(values[i], nuclear[i], n, complete=True)) for i in wanted}
        u = p @ v
    else:
        values = search.triplets().values
        u, v = search.vectors(max((cut.k for cut in cuts.values()), default=0))
    for i, cut in cuts.items():
        excess = (values[i, : cut.k] - cut.value).to(p)
        p[i] *= cut.value
        p[i].addmm_(u[i, :, : cut.k] * excess, v[i, :, : cut.k].mT)
        infos[i] = replace(infos[i], k=cut.k, cut=cut.value, margin=cut.margin, passes=search.passes, noise=cut.noise)
    return p, infos, accepted


def _search_cuts(
    search: BlockKrylov, rule: Rule, nuclear: dict[int, float], size: int, budget: float
) -> dict[int, Cut] | None:
    """Return the cut of each matrix in ``nuclear``, its triplets converged; None: the search does not pay."""
    for _ in range(SEARCH_STEPS):
        triplets = search.triplets()
        candidates = {i: rule.cut(triplets.values[i], total, size) for i, total in nuclear.items()}
        cuts = {i: cut for i, cut in candidates.items() if cut is not None}
        reached = len(cuts) == len(nuclear)
        k = max((cut.k for cut in cuts.values()), default=0)
        if reached and (rule.flat or all(_converged(triplets, i, cut, size, budget) for i, cut in cuts.items())):
            return cuts
        if max(k, search.size // 2) > LARGEST_K or search.size + search.block > size:
            return None
        if reached and search.size >= 2 * (k + 1) + 6 * search.block:
            search.restart(k + 1 + 2 * search.block)
        search.expand()
    return None


def _converged(triplets: Triplets, index: int, cut: Cut, size: int, budget: float) -> bool:
    """Return whether the leading triplets and the cut add less than ``budget`` to the relative error of the result.

    A residual r moves a triplet's term by about r, and its value by r^2 / gap, at most r; the
    value at the cut moves every one of the ``size`` singular values.
    """
    values, residuals = triplets.values[index], triplets.residuals[index]
    k, norm = cut.k, cut.value * math.sqrt(size)
    if k + 1 >= len(values):
        return False
    r, gap = float(residuals[k]), float(values[k] - values[k + 1])
    drift = min(r, r * r / gap if gap > 0 else r)
    floor = 4 * 2.0**-24 * float(values[0])
    return float(residuals[:k].norm()) <= budget * norm and drift <= max(budget * cut.value, floor)
