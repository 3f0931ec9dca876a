r"""Leading singular triplets: the best approximation of rank r, ``X ~ U diag(s) V^T``.

A search with a residual stop, instead of a full SVD that is then cut: LoRA extraction and TSV-M need no more. It is
block Krylov on a CPU, and the filtered subspace iteration of boosting on a GPU.
The value of a triplet with residual r is off by about r^2 / gap, and never by more than r.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._exact import decomposed, full_svd
from ._filter import Search, Triplets, orthonormal
from ._info import Info
from ._krylov import BlockKrylov
from ._matrices import check_choice, check_matrices, frobenius, full_float32
from ._products import Products

__all__ = ["top_singular"]

# Above this share of the singular values, a full decomposition is cheaper.
LARGEST_SHARE = 1 / 8
# Up to this many columns, it is cheaper whatever the spectrum.
SMALL = 256
PASSES = 200
# Above this share of the largest, a left vector found through the square is orthonormal to 2e-6.
SMALLEST_SQUARED = 1e-5

# Left vectors, values, right vectors (as columns), and what was done.
Result = tuple[Tensor, Tensor, Tensor, list[Info]]


def top_singular(x: Tensor, rank: int, *, tol: float = 1e-4, method: str = "auto") -> Result:
    """Return (u [..., m, rank], s [..., rank] falling, vh [..., rank, n], what was done with each matrix).

    Args:
        x:      [..., m, n] float32, finite.
        rank:   number of triplets, from 1 to min(m, n).
        tol:    the search stops when ||X'u - s v|| <= tol * s_0 for every triplet returned. At 1e-4 the error of the
                approximation of rank r exceeds the best one by less than 1e-7 of it on the spectra tested.
        method: ``krylov``, ``filter``, ``exact`` (Gram matrix and its eigenvectors in float64), ``svd``
                (torch.linalg.svd in float32), or ``auto``: the search of the device where size and ``rank`` let it pay,
                then ``exact``, and the SVD where the one before has not converged or cannot tell the last of the
                triplets from rounding.
    Raises:
        ValueError: an argument is out of range; the message names it and its value.
    """
    check_matrices("x", x)
    m, n = x.shape[-2:]
    if not 1 <= rank <= min(m, n):
        raise ValueError(f"rank is {rank}; expected 1 to {min(m, n)} for matrices of shape ({m}, {n})")
    check_choice("method", method, ("auto", "krylov", "filter", "exact", "svd"))
    flat = x.reshape(-1, m, n)
    tall = flat if m >= n else flat.mT
    with full_float32():
        found = None
        if method == "auto" and min(m, n) > SMALL and rank <= LARGEST_SHARE * min(m, n):
            found = by_filter(tall, rank, tol) if x.is_cuda else by_krylov(tall, rank, tol)
        elif method in ("krylov", "filter"):
            found = (by_krylov if method == "krylov" else by_filter)(tall, rank, tol)
        if method in ("auto", "exact"):
            found = found or by_gram(tall, rank)
        u, s, v, infos = found or by_svd(tall, rank)
    if m < n:
        u, v = v, u
    lead = x.shape[:-2]
    return u.reshape(*lead, m, rank), s.reshape(*lead, rank), v.mT.reshape(*lead, rank, n), infos


def by_krylov(x: Tensor, rank: int, tol: float) -> Result | None:
    """Search; None where ``rank`` is too large for the size, or after too many products."""
    n = x.shape[-1]
    block = max(8, min(64, rank // 2))
    largest = 2 * rank + 4 * block
    if not len(x) or rank + 3 * block > n:
        return None
    search = BlockKrylov(x, block)
    while search.passes < PASSES:
        search.expand()
        if search.size < rank:
            continue
        if _converged(search, rank, tol):
            u, v = search.vectors(rank)
            return u, search.values[:, :rank].to(x), v, _infos("krylov", search, rank)
        if search.size + block > min(largest, n - block):
            search.restart(rank + block)
    return None


def by_filter(x: Tensor, rank: int, tol: float) -> Result | None:
    """Search on the device; None where ``rank`` is too large a share of the size, or after too many products."""
    if not len(x) or not bool(x.any()):
        return None
    products = Products.on(x.device)
    norm = frobenius(x).clamp(min=torch.finfo(torch.float32).tiny)
    unit = products.operand(x / norm.to(x).view(-1, 1, 1))
    search = Search(unit, products.gram(unit), norm, products)
    found = search.until(lambda triplets: _converged(triplets, rank, tol), least=rank + max(8, rank // 2))
    if found is None or not _converged(found, rank, tol):
        return None
    v = found.v[..., :rank]
    u = orthonormal(products.multiply(unit, v))
    return u, found.values[:, :rank].to(x), v, _infos("filter", found, rank)


def _converged(found: BlockKrylov | Triplets, rank: int, tol: float) -> bool:
    return bool((found.residuals[:, :rank].amax(dim=1) <= tol * found.values[:, 0]).all())


def by_gram(x: Tensor, rank: int) -> Result | None:
    """From the eigenvectors of ``X^T X`` in float64; None where a value is too small for its square."""
    wide, s, v = decomposed(x)
    s, v = s[..., :rank], v[..., :rank]
    if not bool((s[..., -1] > SMALLEST_SQUARED * s[..., 0]).all()):
        return None
    u = (wide @ v).div_(s.unsqueeze(-2))
    return u.to(x.dtype), s.to(x.dtype), v.to(x.dtype), [Info("exact")] * len(x)


def by_svd(x: Tensor, rank: int) -> Result:
    """From the full SVD in float32."""
    u, s, vh = full_svd(x)
    return u[..., :rank], s[..., :rank], vh[..., :rank, :].mT, [Info("svd")] * len(x)


def _infos(method: str, found: BlockKrylov | Triplets, rank: int) -> list[Info]:
    largest = found.values[:, 0].clamp(min=torch.finfo(torch.float64).tiny)
    shares = found.residuals[:, :rank].amax(dim=1) / largest
    return [Info(method, passes=found.passes, residual=share) for share in shares.tolist()]
