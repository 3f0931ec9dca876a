r"""The route of matrix products: polar factor by polynomial iteration, leading triplets by filtered subspace iteration.

The certificates are the orthogonality of P and the symmetry of P'X, each estimated from PROBES random vectors. They
say that the iteration has converged. Null directions that are few and clear are left out of both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ._exact import Outcome
from ._filter import Search, Triplets, largest_bound
from ._info import Info
from ._matrices import frobenius
from ._polar import Polar, polar_factor
from ._products import Operand, Products
from ._rules import Cut, Rules, found

METHOD = "accurate"
# Largest accepted ||P'P - I||_F / sqrt(n) and ||skew(P'X)||_F / ||X||_F.
ORTH, SKEW = 3e-6, 1e-5
PROBES = 16
# Error that the leading triplets may add, relative to the norm of the result; and what products in float32 leave of
# a residual, relative to the largest value.
TRIPLETS, FLOOR = 3e-7, 2.0**-22


@dataclass(frozen=True)
class Factored:
    """Matrices with their polar factors, before a rule says what becomes of their singular values.

    Attributes:
        x, p:     [batch, m, n] the matrices over their sizes, and the factors.
        gram:     [batch, n, n] x'x.
        size:     [batch] float64: bounds on the largest singular values.
        infos:    what was done.
        accepted: which are certified.
    """

    x: Operand
    p: Operand
    gram: Tensor
    size: Tensor
    infos: list[Info]
    accepted: list[bool]
    products: Products


def by_products(x: Tensor, rules: Rules, keep: bool = True, products: Products | None = None) -> Outcome:
    """Map the singular values of ``x`` [batch, m, n], m >= n, none of them all zeros, by ``rules``.

    Matrices of the batch go through all products together; each has its own certificate and its own cut. Takes up to
    five matrices of the size of ``x`` beside it, and ten Gram matrices.

    Args:
        keep:     null directions may stay null; else a matrix with one is not accepted.
        products: to make; by default those of the device.
    """
    try:
        return raised(factored(x, keep, products or Products.on(x.device)), rules)
    except torch.linalg.LinAlgError:  # an iteration that diverged has no eigenvectors
        return x, [Info(METHOD)] * len(x), [False] * len(x)


def factored(x: Tensor, keep: bool, products: Products) -> Factored:
    """Return the polar factors of ``x``, with certificates; arguments as in ``by_products``."""
    largest = torch.linalg.vector_norm(x, torch.inf, dim=(-2, -1), keepdim=True)
    scale = products.total(largest.clone())
    operand = products.operand(x / scale, largest / scale)
    gram = products.gram(operand)
    squares = largest_bound(gram, products)
    gram /= squares.to(gram).view(-1, 1, 1)
    operand = operand.times(squares.rsqrt().to(gram).view(-1, 1, 1))
    polar = polar_factor(operand, gram, products)
    p = polar.factor
    size = scale.flatten() * squares.sqrt()
    nuclear = size * products.total(torch.sum(p.whole * operand.whole, dim=(-2, -1), dtype=torch.float64))
    orth, skew = _certificates(p, operand, polar, products)
    infos, accepted = [], []
    skew /= gram.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=torch.float64).sqrt()
    rows = torch.stack([nuclear, orth, skew]).mT.tolist()
    for row, count, steps in zip(rows, polar.nullity, polar.steps, strict=True):
        info = Info(METHOD, nuclear=row[0], nullity=count, iterations=steps, orth=row[1], skew=row[2])
        infos.append(info)
        accepted.append(row[1] <= ORTH and row[2] <= SKEW and (count == 0 or (keep and count is not None)))
    return Factored(operand, p, gram, size, infos, accepted, products)


def raised(given: Factored, rules: Rules) -> Outcome:
    """Set the singular values as ``rules`` say, in the place of the polar factors."""
    infos, result, n = list(given.infos), given.p.whole, given.gram.shape[-1]
    nuclear = [info.nuclear or 0.0 for info in infos]
    wanted = [i for i, ok in enumerate(given.accepted) if ok]

    def cuts_of(triplets: Triplets, last: int) -> dict[int, Cut]:
        cuts = {i: rules[i].cut(triplets.values[i], nuclear[i], n) for i in wanted}
        return {i: cut for i, cut in cuts.items() if cut and cut.k <= last}

    def enough(triplets: Triplets) -> bool | None:
        cuts = cuts_of(triplets, triplets.values.shape[-1] - 2)
        return all(_converged(triplets, i, cuts[i], n) for i in wanted) if len(cuts) == len(wanted) else None

    none = torch.empty(len(result), 0, dtype=torch.float64)
    triplets = Triplets(none, none, given.gram[..., :0], 0)
    cuts = cuts_of(triplets, 0)
    if len(cuts) < len(wanted) and (last := Search(given.x, given.gram, given.size, given.products).until(enough)):
        triplets, cuts = last, cuts_of(last, last.values.shape[-1] - 2)
        cuts = {i: cut for i, cut in cuts.items() if _converged(triplets, i, cut, n)}
    _raise_leading(result, cuts, triplets)
    for i in set(wanted) - cuts.keys():
        h = given.products.inner(given.p.of([i]), given.x.of([i]))[0].double()
        values, v = torch.linalg.eigh(given.size[i] / 2 * (h + h.mT))
        known = values.flip(-1)[: n - (infos[i].nullity or 0)].cpu()
        cuts[i] = found(rules[i].cut(known, nuclear[i], n, complete=True))
        _raise_leading(result[i : i + 1], {0: cuts[i]}, Triplets(known[None], none, v.flip(-1)[None].to(result), 0))
    for i, cut in cuts.items():
        infos[i] = replace(
            infos[i], k=cut.k, cut=cut.value, margin=cut.margin, noise=cut.noise, passes=triplets.passes or None
        )
    return result, infos, given.accepted


def _certificates(p: Operand, x: Operand, polar: Polar, products: Products) -> tuple[Tensor, Tensor]:
    """Return estimates of ||P'P - I||_F / sqrt(n), null directions left out, and of ||skew(P'x)||_F."""
    batch, _, n = p.whole.shape
    w = torch.randn(n, PROBES, generator=torch.Generator().manual_seed(0)).to(p.whole).expand(batch, n, PROBES)
    w = w - polar.null @ (polar.null.mT @ w)
    probes = products.operand(w)
    there, image = (products.multiply(whole, probes) for whole in (p, x))
    back = products.inner(p, torch.cat([there, image], dim=-1))
    off, skew = back[..., :PROBES] - w, back[..., PROBES:] - products.inner(x, there)
    return frobenius(off) / math.sqrt(n * PROBES), frobenius(skew) / (2 * math.sqrt(PROBES))


def _raise_leading(p: Tensor, cuts: dict[int, Cut], triplets: Triplets) -> None:
    """Replace P by ``c P + U_k (S_k - c) V_k^T`` where there is a cut; U_k = P V_k."""
    k = max((cut.k for cut in cuts.values()), default=0)
    floor, excess = torch.ones(len(p), 1, 1), torch.zeros(len(p), 1, k)
    for i, cut in cuts.items():
        floor[i] = cut.value
        excess[i, 0, : cut.k] = triplets.values[i, : cut.k] - cut.value
    v = triplets.v[..., :k]
    u = (p @ v) * excess.to(p.device)
    if len(p) == 1:
        p.baddbmm_(u, v.mT, beta=float(floor))
        return
    p *= floor.to(p.device)
    if k:
        p.baddbmm_(u, v.mT)


def _converged(triplets: Triplets, index: int, cut: Cut, n: int) -> bool:
    """Return whether the leading triplets and the cut add less than TRIPLETS to the relative error of the result.

    A residual r moves a triplet's term by about r, and its value by r^2 / gap, at most r; the value at the cut moves
    every singular value.
    """
    k, values, residuals = cut.k, triplets.values[index], triplets.residuals[index]
    floor = FLOOR * float(values[0])
    norm = math.sqrt(float(values[:k].square().sum()) + (n - k) * cut.value**2)
    r, gap = float(residuals[k]), float(values[k] - values[k + 1])
    drift = min(r, r * r / gap if gap > 0 else r)
    near = float(residuals[:k].norm()) <= max(TRIPLETS * norm, floor * math.sqrt(k))
    return near and drift <= max(TRIPLETS * cut.value, floor)
