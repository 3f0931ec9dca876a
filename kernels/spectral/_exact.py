r"""Exact routes: a full decomposition by LAPACK or cuSOLVER.

A singular value is null where it is at most ``NULL`` of the largest: what rounding a rank-deficient matrix to float32
leaves. Its direction is arbitrary, so it maps to zero; a route that cannot tell does not accept the matrix.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._info import Info
from ._matrices import Total, alone
from ._rules import Rules, found

NULL = 2.0**-22
# The error that the Gram matrix may bring to the result, relative to it.
TOLERANCE = 1e-5

# The mapped matrices, what was done with each, and which are certified.
Outcome = tuple[Tensor, list[Info], list[bool]]


def float32_floor(n: int) -> float:
    """Return the share of the largest singular value below which a float32 SVD cannot tell a value from a null one.

    What it returns for null values grows as sqrt(n): 2.7e-7 of the largest at 64, 8.8e-7 at 1024.
    """
    return max(4 * NULL, 2.0**-24 * math.sqrt(n))


def full_svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return u, s, vh of ``x`` [batch, m, n], on its device."""
    return torch.linalg.svd(x, full_matrices=False, driver="gesvd" if x.is_cuda else None)


def decomposed(x: Tensor, total: Total = alone) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``x`` in float64, and its singular values and right vectors from ``X^T X``, by falling value.

    ``total`` adds up Gram matrices over ranks, each of which has a part of the rows.
    """
    wide = x.double()
    squares, v = torch.linalg.eigh(total(wide.mT @ wide))
    return wide, squares.flip(-1).clamp(min=0).sqrt(), v.flip(-1)


def by_svd(x: Tensor, rules: Rules, dtype: torch.dtype, keep: bool) -> Outcome:
    """Map through ``torch.linalg.svd``. In float32, null directions that are not kept are those that it returns."""
    single = dtype == torch.float32
    fill = single and not keep
    try:
        u, s, vh = full_svd(x.to(dtype))
    except torch.linalg.LinAlgError:
        return x, [], [False] * len(x)
    values = s.double().cpu()
    mapped, infos, nullities = mapped_values(values, rules, "svd" if single else "svd64", fill)
    accepted = [keep or not nullity for nullity in nullities]
    if single:
        floor = float32_floor(x.shape[-1])
        accepted = [fill or float(v[-1]) > floor * float(v[0]) for v in values]
    if not any(accepted):
        return x, infos, accepted
    return (u.mul_(mapped.to(s).unsqueeze(-2)) @ vh).to(x.dtype), infos, accepted


def by_gram(x: Tensor, rules: Rules, keep: bool, total: Total = alone) -> Outcome:
    """Map through the eigenvectors of ``X^T X`` in float64: ``X V diag(f(s) / s) V^T``."""
    wide, s, v = decomposed(x, total)
    values = s.cpu()
    mapped, infos, nullities = mapped_values(values, rules, "exact", fill=False)
    gain = torch.where(mapped > 0, mapped / values, 0.0).to(x.device)
    accepted = []
    for row, nullity in zip(values, nullities, strict=True):
        # Squaring costs the square of the condition number, on the few directions at the end of the spectrum.
        smallest = float(row[len(row) - nullity - 1]) / float(row[0])
        accepted.append(2.0**-52 / smallest**2 <= TOLERANCE and (keep or not nullity))
    if not any(accepted):
        return x, infos, accepted
    wide = wide @ (v * gain.unsqueeze(-2))
    return (wide @ v.mT).to(x.dtype), infos, accepted


def mapped_values(values: Tensor, rules: Rules, method: str, fill: bool) -> tuple[Tensor, list[Info], list[int]]:
    """Return f(s) for spectra ``values`` [batch, n], float64 on the host, falling, not all zeros, and nullities."""
    mapped, infos, nullities = torch.empty_like(values), [], []
    for row, (s, rule) in enumerate(zip(values, rules, strict=True)):
        nullity = int((s <= NULL * s[0]).sum())
        kept = s if fill else s[: len(s) - nullity]
        nuclear = float(kept.sum())
        cut = found(rule.cut(kept, nuclear, len(s), complete=True))
        mapped[row] = cut.value
        mapped[row, : cut.k] = s[: cut.k]
        mapped[row, len(kept) :] = 0
        infos.append(Info(method, cut.k, cut.value, nuclear, cut.margin, nullity, noise=cut.noise))
        nullities.append(nullity)
    return mapped, infos, nullities
