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
from ._filter import PATIENCE, Ritz, Search, Triplets, largest_bound
from ._info import Info
from ._matrices import Total, alone, frobenius
from ._polar import Polar, polar_factor
from ._products import Operand, Products
from ._rules import Cut, Rules, found

METHOD = "accurate"
# Largest accepted ||P'P - I||_F / sqrt(n) and ||skew(P'X)||_F / ||X||_F.
ORTH, SKEW = 3e-6, 1e-5
PROBES = 16
# Error that the leading triplets may add, relative to the norm of the result.
TRIPLETS = 3e-7


@dataclass(frozen=True)
class Factored:
    """Matrices with their polar factors, before a rule says what becomes of their singular values.

    Attributes:
        x, p:     [batch, m, n] the matrices, and their factors P.
        gram:     [batch, n, n] X'X / size^2.
        size:     [batch] float64: bounds on the largest singular values.
        norms:    Frobenius norms, and
        nuclear:  nuclear norms, on the host.
        infos:    what was done.
        accepted: which are certified.
    """

    x: Operand
    p: Operand
    gram: Tensor
    size: Tensor
    norms: list[float]
    nuclear: list[float]
    infos: list[Info]
    accepted: list[bool]
    products: Products
    total: Total


def by_products(
    x: Tensor, rules: Rules, keep: bool = True, products: Products | None = None,
    total: Total = alone, rows: int | None = None,
) -> Outcome:  # fmt: skip
    """Map the singular values of ``x`` [batch, m, n], m >= n, none of them all zeros, by ``rules``.

    Matrices of the batch go through all products together; each has its own certificate and its own cut. Takes up to
    five matrices of the size of ``x`` beside it, and eight Gram matrices.

    Args:
        keep:     null directions may stay null; else a matrix with one is not accepted.
        products: to make; by default those of the device.
        total:    adds up over ranks that have ``rows`` rows together, of which ``x`` is a part.
    """
    try:
        return raised(factored(x, keep, products or Products.on(x.device), total, rows), rules)
    except torch.linalg.LinAlgError:  # an iteration that diverged has no eigenvectors
        return x, [Info(METHOD)] * len(x), [False] * len(x)


def factored(x: Tensor, keep: bool, products: Products, total: Total = alone, rows: int | None = None) -> Factored:
    """Return the polar factors of ``x``, with certificates; arguments as in ``by_products``."""
    norm = total(frobenius(x).square()).sqrt()
    unit = x / norm.to(x).view(-1, 1, 1)
    gram = total(products.gram(products.operand(unit)))
    squares = largest_bound(gram, products)
    gram = gram / squares.to(gram).view(-1, 1, 1)
    unit *= squares.rsqrt().to(unit).view(-1, 1, 1)
    polar = polar_factor(unit, gram, products, total, rows)
    del unit
    p, whole = products.operand(polar.factor), products.operand(x)
    certificates = _certificates(p, whole, polar, norm, products, total)
    nuclear = total(torch.sum(polar.factor * x, dim=(-2, -1), dtype=torch.float64))
    orth, skew, sums, norms = torch.stack([*certificates, nuclear, norm]).tolist()
    accepted = [
        o <= ORTH and s <= SKEW and (count == 0 or (keep and count is not None))
        for o, s, count in zip(orth, skew, polar.nullity, strict=True)
    ]
    infos = [
        Info(METHOD, nuclear=nuclear, nullity=count, iterations=steps, orth=o, skew=s)
        for nuclear, count, steps, o, s in zip(sums, polar.nullity, polar.steps, orth, skew, strict=True)
    ]
    return Factored(whole, p, gram, norm * squares.sqrt(), norms, sums, infos, accepted, products, total)


def raised(given: Factored, rules: Rules) -> Outcome:
    """Set the singular values as ``rules`` say, in the place of the polar factors."""
    products, infos, result = given.products, list(given.infos), given.p.whole
    wanted = [i for i, ok in enumerate(given.accepted) if ok]
    if not wanted:
        return result, infos, given.accepted

    def factor(v: Tensor) -> Tensor:
        """Return P'X v: P'X is symmetric, and its eigenvalues are the singular values, not squared."""
        left = products.multiply(given.x, products.operand(v))
        return given.total(products.multiply(given.p.mT, products.operand(left))).double()

    def ritz(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        image = factor(v)
        values, turn = torch.linalg.eigh(_symmetric(v.double().mT @ image))
        values, turn = values.flip(-1), turn.flip(-1)
        v, image = v.double() @ turn, image @ turn
        return values, torch.linalg.vector_norm(image - v * values.unsqueeze(-2), dim=-2), v.to(result)

    cuts, triplets, passes = _search_cuts(given, wanted, rules, ritz)
    _raise_leading(result, cuts, triplets)
    for i in [i for i in wanted if i not in cuts]:
        h = given.total(products.multiply(given.p.of([i]).mT, given.x.of([i])))[0]
        values, v = torch.linalg.eigh(_symmetric(h.double()))
        known = values.flip(-1)[: len(h) - (infos[i].nullity or 0)].cpu()
        cuts[i] = found(rules[i].cut(known, given.nuclear[i], len(h), complete=True))
        whole = Triplets(known[None], torch.zeros_like(known[None]), v.flip(-1)[None].to(result))
        _raise_leading(result[i : i + 1], {0: cuts[i]}, whole)
    for i, cut in cuts.items():
        infos[i] = replace(infos[i], k=cut.k, cut=cut.value, margin=cut.margin, noise=cut.noise, passes=passes)
    return result, infos, given.accepted


def _certificates(
    p: Operand, x: Operand, polar: Polar, norm: Tensor, products: Products, total: Total
) -> tuple[Tensor, Tensor]:
    """Return estimates of ||P'P - I||_F / sqrt(n), null directions left out, and of ||skew(P'X)||_F / ||X||_F."""
    batch, n = len(p.whole), p.whole.shape[-1]
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(n, PROBES, generator=generator).to(p.whole).expand(batch, n, PROBES)
    w = w - polar.null @ (polar.null.mT @ w)
    probes = products.operand(w)
    there, image = (products.operand(products.multiply(whole, probes)) for whole in (p, x))
    off = total(products.multiply(p.mT, there)) - w
    skew = total(products.multiply(p.mT, image)) - total(products.multiply(x.mT, there))
    return frobenius(off) / math.sqrt(n * PROBES), frobenius(skew) / (2 * math.sqrt(PROBES)) / norm


def _search_cuts(
    given: Factored, wanted: list[int], rules: Rules, ritz: Ritz
) -> tuple[dict[int, Cut], Triplets, int | None]:
    """Return the cut of each wanted matrix whose triplets converge while a search pays, all triplets, and its passes.

    Flat rules need no search.
    """
    batch, size = given.gram.shape[:2]
    none = torch.empty(batch, 0, dtype=torch.float64)
    triplets = Triplets(none, none, given.gram[..., :0])
    if rules[0].flat:
        return {i: found(rules[i].cut(none[i], given.nuclear[i], size)) for i in wanted}, triplets, None
    search = Search(given.gram, given.size, given.products, ritz)
    done: dict[int, Cut] = {}
    while search.columns:
        for attempt in range(PATIENCE):
            triplets = search.step()
            candidates = {i: rules[i].cut(triplets.values[i], given.nuclear[i], size) for i in wanted}
            cuts = {i: cut for i, cut in candidates.items() if cut is not None and cut.k + 1 < search.columns}
            done = {i: cut for i, cut in cuts.items() if _converged(triplets, i, cut, given)}
            if len(done) == len(wanted):
                return done, triplets, search.passes
            if attempt and len(cuts) < len(wanted):
                break
        if not search.widen():
            break
    return done, triplets, search.passes


def _raise_leading(p: Tensor, cuts: dict[int, Cut], triplets: Triplets) -> None:
    """Replace P by ``c P + U_k (S_k - c) V_k^T`` where there is a cut; U_k = P V_k."""
    k = max((cut.k for cut in cuts.values()), default=0)
    floor, excess = torch.ones(len(p), 1, 1), torch.zeros(len(p), 1, k)
    for i, cut in cuts.items():
        floor[i] = cut.value
        excess[i, 0, : cut.k] = triplets.values[i, : cut.k] - cut.value
    v = triplets.v[..., :k]
    u = (p @ v) * excess.to(p.device)
    p *= floor.to(p.device)
    p.baddbmm_(u, v.mT)


def _converged(triplets: Triplets, index: int, cut: Cut, given: Factored) -> bool:
    """Return whether the leading triplets and the cut add less than TRIPLETS to the relative error of the result.

    A residual r moves a triplet's term by about r, and its value by r^2 / gap, at most r; the value at the cut moves
    every singular value. No residual gets below what P'X, whose triplets they are, lacks of its symmetry.
    """
    values, residuals = triplets.values[index], triplets.residuals[index]
    k, norm = cut.k, cut.value * math.sqrt(given.gram.shape[-1])
    doubt = (given.infos[index].skew or 0.0) * given.norms[index]
    r, gap = float(residuals[k]), float(values[k] - values[k + 1])
    drift = min(r, r * r / gap if gap > 0 else r)
    floor = 4 * 2.0**-24 * float(values[0])
    return float(residuals[:k].norm()) <= max(TRIPLETS * norm, doubt) and drift <= max(TRIPLETS * cut.value, floor)


def _symmetric(x: Tensor) -> Tensor:
    return (x + x.mT) / 2
