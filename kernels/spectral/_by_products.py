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
from ._products import LIBRARY, Kernel, Products
from ._rules import Cut, Rule, found


@dataclass(frozen=True)
class Settings:
    """Precision and limits of the route.

    Attributes:
        method:        its name in ``Info``.
        precision:     of the products on a GPU.
        cpu_precision: of the products on a CPU, where float16 pieces save no time.
        kernel:        of the products on a GPU: the library until a measurement says otherwise (``benchmarks.gpu``
                       times both, ``_triton.split_product`` predicts both).
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
    kernel: Kernel = LIBRARY

    def products(self, device: torch.device) -> Products:
        """Return the products to make on ``device``.

        The library needs float16 products with a float32 result, which torch has from 2.8 on; before,
        products on a GPU are float32: as accurate, and slower.
        """
        if device.type != "cuda":
            return Products(self.cpu_precision, self.kernel)
        if self.kernel is LIBRARY and not hasattr(torch.ops.aten.baddbmm, "dtype_out"):
            return Products("float32")
        return Products(self.precision, self.kernel)


ACCURATE = Settings("accurate", "split16", "float32", orth=3e-6, skew=1e-5, triplets=3e-7)
FAST = Settings("fast", "half", "half", orth=5e-3, skew=5e-3, triplets=3e-4)

# The Krylov estimate of the largest singular value is from below, by its residual at most.
HEADROOM = 1.01
BLOCK = 16
# Beyond this many leading triplets, one eigendecomposition of P'X is cheaper than the search.
LARGEST_K = 256
SEARCH_STEPS = 200


def by_products(x: Tensor, rule: Rule, settings: Settings) -> Outcome:
    """Map the singular values of ``x`` [batch, m, n], m >= n, none of them all zeros, by ``rule``.

    Matrices of the batch go through all products together; each has its own certificate and its own cut. Takes up to
    five matrices of the size of ``x`` beside it, and five Gram matrices.
    """
    n = x.shape[-1]
    products = settings.products(x.device)
    search = BlockKrylov(x, max(1, min(BLOCK, n // 4)))
    for _ in range(min(3, n)):
        search.expand()
    leading = search.triplets()
    largest = HEADROOM * (leading.values[:, 0] + leading.residuals[:, 0])
    p, iterations, orth = polar_factor(x, largest, products, settings.orth)
    h = products.multiply(products.operand(p).mT, products.operand(x))
    skew = frobenius(h - h.mT) / 2 / frobenius(x)
    skew, nuclear = torch.stack([skew, torch.sum(p * x, dim=(-2, -1), dtype=torch.float64)]).tolist()
    accepted = [o <= settings.orth and s <= settings.skew for o, s in zip(orth, skew, strict=True)]
    wanted = [i for i, ok in enumerate(accepted) if ok]
    cuts = search_cuts(search, rule, {i: nuclear[i] for i in wanted}, n, settings.triplets)
    raise_leading(p, cuts, search.triplets().values, *search.vectors(largest_k(cuts)))
    cuts |= raise_by_factor(p, h, rule, {i: nuclear[i] for i in wanted if i not in cuts})
    infos = []
    for i in range(len(x)):
        info = Info(settings.method, nuclear=nuclear[i], nullity=0, iterations=iterations, orth=orth[i], skew=skew[i])
        if cut := cuts.get(i):
            info = replace(info, k=cut.k, cut=cut.value, margin=cut.margin, noise=cut.noise, passes=search.passes)
        infos.append(info)
    return p, infos, accepted


def search_cuts(search: BlockKrylov, rule: Rule, nuclear: dict[int, float], size: int, budget: float) -> dict[int, Cut]:
    """Return the cut of each matrix in ``nuclear`` whose leading triplets converge before the search stops to pay."""
    done: dict[int, Cut] = {}
    for _ in range(SEARCH_STEPS):
        triplets = search.triplets()
        candidates = {i: rule.cut(triplets.values[i], total, size) for i, total in nuclear.items()}
        cuts = {i: cut for i, cut in candidates.items() if cut is not None}
        done = {i: cut for i, cut in cuts.items() if rule.flat or _converged(triplets, i, cut, size, budget)}
        k = largest_k(cuts)
        if len(done) == len(nuclear) or max(k, search.size // 2) > LARGEST_K or search.size + search.block > size:
            break
        if len(cuts) == len(nuclear) and search.size >= 2 * (k + 1) + 6 * search.block:
            search.restart(k + 1 + 2 * search.block)
        search.expand()
    return done


def largest_k(cuts: dict[int, Cut]) -> int:
    """Return how many leading triplets the cuts need."""
    return max((cut.k for cut in cuts.values()), default=0)


def raise_leading(p: Tensor, cuts: dict[int, Cut], values: Tensor, u: Tensor, v: Tensor) -> None:
    """Replace P by ``c P + U_k (S_k - c) V_k^T`` where there is a cut.

    Args:
        values: [batch, k or more] leading singular values, on the host.
        u, v:   [batch, m or n, k] leading singular vectors.
    """
    floor, excess = torch.ones(len(p), 1, 1), torch.zeros(len(p), 1, u.shape[-1])
    for i, cut in cuts.items():
        floor[i] = cut.value
        excess[i, 0, : cut.k] = values[i, : cut.k] - cut.value
    p *= floor.to(p.device)
    p.baddbmm_(u * excess.to(p.device), v.mT)


def raise_by_factor(p: Tensor, h: Tensor, rule: Rule, nuclear: dict[int, float]) -> dict[int, Cut]:
    """Do the same with the eigenvectors of P'X, and return the cuts."""
    cuts: dict[int, Cut] = {}
    for i, total in nuclear.items():
        # P'X is the symmetric factor: its eigenvalues are the singular values, not squared.
        values, v = torch.linalg.eigh((h[i] + h[i].mT) / 2)
        values, v = values.flip(-1), v.flip(-1)
        cut = cuts[i] = found(rule.cut(values.double().cpu(), total, h.shape[-1], complete=True))
        right = v[:, : cut.k]
        left = p[i] @ right
        p[i].mul_(cut.value).addmm_(left * (values[: cut.k] - cut.value), right.mT)
    return cuts


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
