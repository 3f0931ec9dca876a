r"""Polar factor by matrix products: few steps of a polynomial iteration, then a repair of what they left behind.

A schedule that serves the smallest singular values would grow, for a handful of directions, all of the matrix. So it
is cut short: at 1e-3 of the largest (square) or 1e-2 (tall). What is still small then is found among a few directions,
those that a filter of X'X leaves, and set to 1 by an update of low rank. Where all of these are small, the schedule was
too short, and goes on. One more step finishes.

A step is ``X <- X M`` with M a polynomial of A = X'X: one product with X beside that of A, and one or two of n x n
matrices. X stays in float32: what the products lose in a multiplier costs their precision, whatever the condition
number; rounding X itself would cost that times the condition number. Two steps of a tall matrix meet X once, with
``A <- A M^2`` between them. Errors of A grow with the square of what M does to small values: of all pairs of steps,
only one that begins with a small gain left the errors as they were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._exact import NULL
from ._filter import by_cholesky, start_block
from ._products import Operand, Products, chosen
from ._schedule import Schedule, Step, schedule

# The smallest values served, and the degrees of the steps, of a square matrix, and of one RATIO times as long as wide.
SQUARE, TALL, RATIO = (1e-3, ((4,),) * 4), (1.15e-2, ((4,), (2, 4))), 1.3
# An extension serves what has grown to so much. The matrix shrinks first by what the schedule may leave above 1.
MORE, EXTENSIONS, SHRINK = (0.04, ((4,),) * 2), 3, 1.06
# Directions that are looked at: this share of n, or the least number.
SHARE, LEAST = 1 / 32, 12
# Chebyshev filters of the look, and the degree of each: columns are made orthonormal between them.
FILTERS, DEGREE = 4, 3
# By how much a direction found may be off, times what repairing it amplifies. Others are left to the last step.
ALIGNED = 1e-6
# The least square of a singular value that the last step takes, and that all directions not looked at must have.
LEAST_LEFT, LEAST_LAST = 0.4, 0.8
# Near enough to 1 to need no repair.
NEAR = 0.98
# A value below NULL of the largest by this factor is null, one above it by the factor is not; between, who knows.
TELLING = 1.5
# What the last step may leave of ||P'P - I||_F / sqrt(n); else it is made twice.
LEFT = 5e-7


class Polar(NamedTuple):
    """Attributes:
    factor:  [batch, m, n], ready to be multiplied; null directions map to zero.
    null:    [batch, n, p] right singular vectors of null directions, and zeros.
    nullity: null directions of each matrix; None: too many, or they cannot be told from small ones.
    steps:   of the iteration of each matrix, the last one counted.
    """

    factor: Operand
    null: Tensor
    nullity: list[int | None]
    steps: list[int]


def polar_factor(x: Operand, gram: Tensor, products: Products) -> Polar:
    """Return the polar factor of each matrix. Takes two matrices beside ``x`` and six of the size of ``gram``.

    The host waits for the device once, or twice where directions are not what the last step serves; as often again
    per extension, which only the matrices that need it get.

    Args:
        x:    [batch, m, n], m >= n, singular values at most 1.
        gram: [batch, n, n] = x'x.
    """
    batch, m, n = x.whole.shape
    plan = schedule(*(TALL if (products.rows or m) >= RATIO * n else SQUARE))
    gram, taken, gain = gram.clone(), 0, 1.0
    pending, done, parts = list(range(batch)), [], []
    for extension in range(EXTENSIONS + 1):
        for group in plan.groups:
            x = _stepped(x, gram, group, products)
            gram = products.gram(x)
        taken, gain = taken + sum(map(len, plan.groups)), gain * plan.gain
        look = _look(x, gram, plan, products)
        short = _judged(look.squares, plan, gain, n).short if extension < EXTENSIONS else [False] * len(pending)
        if some := [i for i, s in enumerate(short) if not s]:
            ended = _Look(*(chosen(part, some) for part in look))
            judged = _judged(ended.squares, plan, gain, n)
            parts.append(_ended(x.of(some), chosen(gram, some), ended, judged, plan.last, products, taken))
            done += [pending[i] for i in some]
        if len(done) == batch:
            break
        some = [i for i, s in enumerate(short) if s]
        pending = [pending[i] for i in some]
        x, gram = x.of(some).times(look.y.new_full((len(some), 1, 1), 1 / SHRINK)), chosen(gram, some) / SHRINK**2
        plan, gain = schedule(*MORE), gain / SHRINK
    return parts[0] if len(parts) == 1 else _joined(parts, sorted(range(batch), key=done.__getitem__), products)


def _stepped(x: Operand, gram: Tensor, steps: Sequence[Step], products: Products) -> Operand:
    """Return X after a step, or two. Overwrites ``gram``."""
    first, *second = steps
    multiplier, constant = _multiplier(gram.clone() if second else gram, first, products), first.constant
    for step in second:
        m = multiplier
        half = products.multiplied(gram, m, 1.0, constant, gram, symmetric=True)
        gram = products.multiply(half, m, 1.0, constant, half.whole, symmetric=True)
        del half  # a step needs the memory
        then = _multiplier(gram, step, products)
        both = products.multiply(m, then, 1.0, step.constant, m.whole, symmetric=True)
        multiplier = products.operand(both.add_(then.whole, alpha=constant))
        constant *= step.constant
    return products.multiplied(x, multiplier, 1.0, constant, x.whole)


def _multiplier(gram: Tensor, step: Step, products: Products) -> Operand:
    """Return M but for its constant. Overwrites ``gram``."""
    b = products.operand(_shift(gram, step.shift))
    if not step.quartic:
        return products.multiplied(b, b, step.square, symmetric=True)
    square = products.multiplied(b, b, symmetric=True)
    torch.add(square.whole, gram, alpha=step.linear / step.square, out=gram)
    return products.multiplied(square, square, step.quartic, step.square, gram, symmetric=True)


def _shift(gram: Tensor, by: float) -> Tensor:
    """Subtract ``by I`` in place."""
    gram.diagonal(dim1=-2, dim2=-1).sub_(by)
    return gram


class _Look(NamedTuple):
    """Attributes:
    squares: [batch, p] float64 on the host, rising: those of the singular values in the space of ``v``; ones where
             no matrix has any that the last step does not serve.
    v:       [batch, n, p] right singular vectors there.
    y:       [batch, m, p] X v.
    """

    squares: Tensor
    v: Tensor
    y: Tensor


def _look(x: Operand, gram: Tensor, plan: Schedule, products: Products) -> _Look:
    """Find the directions that are farthest below what the steps of ``plan`` leave."""
    n = gram.shape[-1]
    v = start_block(gram, min(n, max(LEAST, math.ceil(SHARE * n))))
    middle, half = (plan.high**2 + plan.low**2) / 2, (plan.high**2 - plan.low**2) / 2
    away = products.operand(_shift(gram, middle))
    for _ in range(FILTERS):
        before, v = v, products.multiply(away, v, 1 / half)
        for _ in range(DEGREE - 1):
            before, v = v, products.multiply(away, v, 2 / half, -1.0, before)
        v = by_cholesky(v)
    _shift(gram, -middle)
    y = products.multiply(x, v)
    wide, high = y.double(), v.double()
    # A column of zeros stands for a direction that is in the middle exactly.
    missing = torch.diag_embed((torch.linalg.vector_norm(v, dim=-2) < 0.5).double())
    projected = products.total(wide.mT @ wide) + missing
    if not torch.linalg.cholesky_ex(_shift(projected.clone(), plan.low**2)).info.cpu().any():
        return _Look(torch.ones(v.shape[::2], dtype=torch.float64), v, y)
    squares, turn = torch.linalg.eigh(projected)
    return _Look(squares.clamp(min=0).cpu(), (high @ turn).to(v), (wide @ turn).to(v))


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


def _judged(squares: Tensor, plan: Schedule, gain: float, n: int) -> _Judged:
    """Judge directions [batch, p], by rising squares of their singular values; small ones have grown by ``gain``."""
    count = squares.shape[-1]
    sizes, last = squares.sqrt() / gain, squares[:, -1:]
    null = sizes < NULL / TELLING
    clear = (null | (sizes > NULL * TELLING)).all(-1)
    middle, half = (plan.high**2 + plan.low**2) / 2, (plan.high**2 - plan.low**2) / 2
    kept = ((middle - squares) / half).clamp(min=1).acosh().mul(DEGREE).cosh() ** FILTERS
    gains = squares.rsqrt() - 1
    # Those that were not looked at are at least as near to 1.
    aligned = gains.abs() * kept[:, -1:] <= 2 * ALIGNED * kept if count < n else torch.ones_like(null)
    repaired = (aligned & (squares < NEAR)) | null
    gains = torch.where(null, -1.0, torch.where(repaired, gains, 0.0))
    others = last if count < n else torch.ones_like(last)
    short = ((~repaired & (squares < LEAST_LEFT)).any(-1) | (others[:, 0] < LEAST_LAST)) & clear & ~null.all(-1)
    off = [(1 - s.sqrt() * plan.last.gain(s)).abs().clamp(min=plan.error) for s in (squares, others)]
    left = 2 * (((~repaired * off[0].square()).sum(-1) + (n - count) * off[1][:, 0].square()) / n).sqrt()
    nullity = [
        int(row.sum()) if ok and not s and (count == n or not bool(row.all())) else None
        for row, ok, s in zip(null, clear.tolist(), short.tolist(), strict=True)
    ]
    return _Judged(gains, null, short.tolist(), nullity, left)


def _ended(
    x: Operand, gram: Tensor, look: _Look, judged: _Judged, last: Step, products: Products, taken: int
) -> Polar:  # fmt: skip
    """Repair the small directions, then make the last step, or two."""
    if bool(judged.gains.any()):
        grown = torch.where(judged.gains != 0, 1 + judged.gains, 0.0)
        gains, grown, squares = torch.stack([judged.gains, grown, look.squares]).unsqueeze(-2).to(gram)
        # What rounding left in y of directions that are right would grow with it, and turn them: it is taken out.
        off = products.inner(x, look.y) - look.v * squares
        change = look.y * gains - products.multiply(x, off) * grown
        # (X + change v')'(X + change v')
        turned = products.inner(x, change) + look.v @ (products.total(change.mT @ change) / 2)
        gram = torch.baddbmm(gram, torch.cat([turned, look.v], -1), torch.cat([look.v, turned], -1).mT)
        x = products.operand(torch.baddbmm(x.whole, change, look.v.mT))
    x, taken = _stepped(x, gram, [last], products), taken + 1
    if bool((judged.left > LEFT).any()):
        x, taken = _stepped(x, products.gram(x), [last], products), taken + 1
    return Polar(x, look.v * judged.null.to(look.v).unsqueeze(-2), judged.nullity, [taken] * len(x.whole))


def _joined(parts: list[Polar], order: list[int], products: Products) -> Polar:
    """Return parts of a batch as one, matrix i at ``order[i]`` of them all."""
    factor = products.operand(torch.cat([p.factor.whole for p in parts])[order])
    null = torch.cat([p.null for p in parts])[order]
    nullity, steps = [n for p in parts for n in p.nullity], [n for p in parts for n in p.steps]
    return Polar(factor, null, [nullity[i] for i in order], [steps[i] for i in order])
