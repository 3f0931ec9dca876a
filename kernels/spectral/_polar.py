r"""Polar factor by matrix products: few steps of a polynomial iteration, then a repair of what they left behind.

A schedule that serves the smallest singular values would grow, for a handful of directions, all of the matrix. So it
is cut short: at 1e-3 of the largest (square) or 1e-2 (tall). What is still small then is found among a few directions,
those that powers of ``I - X'X`` leave, and set to 1 by an update of low rank. Where all of these are small, the
schedule was too short, and goes on. One step of order 5 finishes.

Steps go in groups that meet X once: with A = X'X, ``Q <- Q M, A <- A M^2`` for each M = a I + b A + c A^2, then
``X <- X Q``. Errors of A grow with the square of what Q does to small values, which bounds the size of a group. X stays
in float32 between groups: what the products lose in a multiplier costs their precision, whatever the condition number;
rounding X itself would cost that times the condition number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._exact import NULL
from ._filter import by_cholesky, orthonormal, start_block
from ._products import Operand, Products, chosen
from ._schedule import Quintic, schedule

TALL = 1.3
SQUARE_LOWER, TALL_LOWER = 1e-3, 1e-2
# Directions that are looked at: this share of n, or the least number.
SHARE, LEAST = 1 / 32, 12
# Products with I - X'X, and how many of them between orthonormal columns.
POWERS, TOGETHER = 12, 3
# By how much a direction found may be off, times what repairing it amplifies. Others are left to the last step.
ALIGNED = 1e-6
# The least square of a singular value that the last step takes, and that all directions not looked at must have.
LEAST_LEFT, LEAST_LAST = 0.4, 0.8
# Near enough to 1 to need no repair.
NEAR = 0.98
# An extension serves what has grown to a tenth. The matrix shrinks first by what the schedule may leave above 1.
EXTENSION, EXTENSIONS, SHRINK = 0.1, 3, 1.03
# A value below NULL of the largest by this factor is null, one above it by the factor is not; between, who knows.
TELLING = 1.5
# What the last step may leave of ||P'P - I||_F / sqrt(n); else it is made twice.
TAYLOR, LEFT = 63 / 256, 5e-7


class Polar(NamedTuple):
    """Attributes:
    factor:  [batch, m, n]; null directions map to zero.
    null:    [batch, n, p] right singular vectors of null directions, and zeros.
    nullity: null directions of each matrix; None: too many, or they cannot be told from small ones.
    steps:   of the iteration of each matrix, the last one counted.
    """

    factor: Tensor
    null: Tensor
    nullity: list[int | None]
    steps: list[int]


def polar_factor(x: Operand, gram: Tensor, products: Products) -> Polar:
    """Return the polar factor of each matrix. Takes two matrices beside ``x`` and six of the size of ``gram``.

    The host waits for the device once, and once more per extension, which only the matrices that need it get.

    Args:
        x:    [batch, m, n], m >= n, singular values at most 1.
        gram: [batch, n, n] = x'x.
    """
    batch, m, n = x.whole.shape
    tall = (products.rows or m) >= TALL * n
    steps, taken, gain = schedule(TALL_LOWER if tall else SQUARE_LOWER), 0, 1.0
    pending, done, parts = list(range(batch)), [], []
    for extension in range(EXTENSIONS + 1):
        for group in _groups(steps, tall):
            x = products.operand(_grown(x, gram, group, products))
            gram = products.gram(x)
        taken, gain = taken + len(steps), gain * math.prod(a for a, _, _ in steps)
        look = _look(x, gram, products)
        squares = look.squares.cpu()
        short = _judged(squares, gain, n).short if extension < EXTENSIONS else [False] * len(pending)
        if some := [i for i, s in enumerate(short) if not s]:
            judged = _judged(squares[some], gain, n)
            ended = x.of(some), chosen(gram, some), _Look(*(chosen(part, some) for part in look))
            parts.append(_ended(*ended, judged, products, taken))
            done += [pending[i] for i in some]
        if len(done) == batch:
            break
        some = [i for i, s in enumerate(short) if s]
        pending = [pending[i] for i in some]
        x, gram = products.operand(chosen(x.whole, some) / SHRINK), chosen(gram, some) / SHRINK**2
        steps, gain = schedule(EXTENSION), gain / SHRINK
    return parts[0] if len(parts) == 1 else _joined(parts, sorted(range(batch), key=done.__getitem__))


def _groups(steps: Sequence[Quintic], tall: bool) -> list[Sequence[Quintic]]:
    """Return the steps, of a tall matrix two, one, two, ... at a time.

    A group of two saves a third of a step's products at m = 3.5 n. More of them, or three at a time, would save more,
    and took the error of a Gaussian matrix beyond 1.5 times that of a float32 SVD.
    """
    groups: list[Sequence[Quintic]] = []
    while steps:
        size = 1 + (tall and len(groups) % 2 == 0)
        groups.append(steps[:size])
        steps = steps[size:]
    return groups


def _grown(x: Operand, gram: Tensor, steps: Sequence[Quintic], products: Products) -> Tensor:
    """Return X after a group of steps: ``alpha X + X S``, with Q = alpha I + S."""
    alpha, s = 1.0, None
    for i, (a, b, c) in enumerate(steps):
        operand = products.operand(gram)
        # M = a I + rest
        rest = products.operand(products.multiply(operand, operand, c, b, gram, symmetric=True))
        if i < len(steps) - 1:
            half = products.multiply(operand, rest, 1.0, a, gram, symmetric=True)
            gram = products.multiply(half, rest, 1.0, a, half, symmetric=True)
        if s is not None:
            both = products.multiply(s, rest, 1.0, a, s.whole, symmetric=True)
            rest = products.operand(both.add_(rest.whole, alpha=alpha))
        s = rest
        alpha *= a
    assert s is not None
    return products.multiply(x, s, 1.0, alpha, x.whole)


class _Look(NamedTuple):
    """Attributes:
    squares: [batch, p] float64, rising: those of the singular values in the space of ``v``.
    v:       [batch, n, p] right singular vectors there.
    y:       [batch, m, p] X v.
    """

    squares: Tensor
    v: Tensor
    y: Tensor


def _look(x: Operand, gram: Tensor, products: Products) -> _Look:
    """Find the directions that are farthest from 1."""
    n = gram.shape[-1]
    v = start_block(gram, min(n, max(LEAST, math.ceil(SHARE * n))))
    away = products.operand(_minus_one(gram))
    for _ in range(POWERS // TOGETHER):
        for _ in range(TOGETHER):
            v = products.multiply(away, v)
        v = by_cholesky(v)
    v = orthonormal(v)
    y = products.multiply(x, v)
    wide, high = y.double(), v.double()
    # A column of zeros stands for a direction that is 1 exactly.
    missing = torch.diag_embed((torch.linalg.vector_norm(v, dim=-2) < 0.5).double())
    squares, turn = torch.linalg.eigh(products.total(wide.mT @ wide) + missing)
    return _Look(squares.clamp(min=0), (high @ turn).to(v), (wide @ turn).to(v))


class _Judged(NamedTuple):
    """Attributes, on the host:
    gains:   [batch, p]: a direction of the look is to be multiplied by 1 + its gain.
    null:    [batch, p] true for null directions.
    short:   true where the schedule was.
    nullity: as in ``Polar``.
    left:    [batch] what one last step leaves of ||P'P - I||_F / sqrt(n).
    """

    gains: Tensor
    null: Tensor
    short: list[bool]
    nullity: list[int | None]
    left: Tensor


def _judged(squares: Tensor, gain: float, n: int) -> _Judged:
    """Judge directions [batch, p], by rising squares of their singular values; small ones have grown by ``gain``."""
    count = squares.shape[-1]
    sizes, away = squares.sqrt() / gain, 1 - squares
    null = sizes < NULL / TELLING
    clear = (null | (sizes > NULL * TELLING)).all(-1)
    # Those that were not looked at are at least as near to 1.
    last = away[:, -1:] if count < n else torch.zeros_like(away[:, -1:])
    gains = squares.rsqrt() - 1
    aligned = gains.abs() * (last / away).abs() ** POWERS <= 2 * ALIGNED
    repaired = (aligned & (squares < NEAR)) | null
    gains = torch.where(null, -1.0, torch.where(repaired, gains, 0.0))
    kept = ~repaired
    short = ((kept & (squares < LEAST_LEFT)).any(-1) | (last[:, 0] > 1 - LEAST_LAST)) & clear & ~null.all(-1)
    left = 2 * TAYLOR * (((kept * away**10).sum(-1) + (n - count) * last[:, 0] ** 10) / n).sqrt()
    nullity = [
        int(row.sum()) if ok and not s and (count == n or not bool(row.all())) else None
        for row, ok, s in zip(null, clear.tolist(), short.tolist(), strict=True)
    ]
    return _Judged(gains, null, short.tolist(), nullity, left)


def _ended(x: Operand, gram: Tensor, look: _Look, judged: _Judged, products: Products, taken: int) -> Polar:
    """Repair the small directions, then make the last step, or two."""
    whole = x.whole
    if bool(judged.gains.any()):
        gains = judged.gains.to(look.squares.device).unsqueeze(-2)
        # (I + v g v') A (I + v g v'), with v'A v = diag(squares). X'y has the digits of A v that A, of size 1, has not.
        turned = products.inner(x, look.y) * gains + look.v * (gains.square() * look.squares.unsqueeze(-2) / 2)
        turned = turned.to(gram)
        gram = torch.baddbmm(gram, torch.cat([turned, look.v], -1), torch.cat([look.v, turned], -1).mT)
        whole = torch.baddbmm(whole, look.y * gains.to(look.y), look.v.mT)
    whole, taken = _finished(whole, gram, products), taken + 1
    if bool((judged.left > LEFT).any()):
        whole, taken = _finished(whole, products.gram(whole), products), taken + 1
    return Polar(whole, look.v * judged.null.to(look.v).unsqueeze(-2), judged.nullity, [taken] * len(whole))


def _joined(parts: list[Polar], order: list[int]) -> Polar:
    """Return parts of a batch as one, matrix i at ``order[i]`` of them all."""
    factor, null = torch.cat([p.factor for p in parts])[order], torch.cat([p.null for p in parts])[order]
    nullity, steps = [n for p in parts for n in p.nullity], [n for p in parts for n in p.steps]
    return Polar(factor, null, [nullity[i] for i in order], [steps[i] for i in order])


def _finished(x: Tensor, gram: Tensor, products: Products) -> Tensor:
    """Return ``X (X'X)^-1/2`` by its Taylor polynomial around 1: with E = X'X - I, TAYLOR E^5 stays."""
    e = _minus_one(gram)
    operand = products.operand(e)
    square = products.multiply(operand, operand, symmetric=True)
    outer = e.mul(-1 / 2).add_(square, alpha=3 / 8)
    inner = e.mul_(-5 / 16).add_(square, alpha=35 / 128)
    multiplier = products.multiply(square, inner, 1.0, 1.0, outer, symmetric=True)
    return products.multiply(x, multiplier, 1.0, 1.0, x)


def _minus_one(gram: Tensor) -> Tensor:
    result = gram.clone()
    result.diagonal(dim1=-2, dim2=-1).sub_(1)
    return result
