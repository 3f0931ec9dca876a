"""How far a method may be from another tool's result on the same inputs, per element, with the derivation.

Both sides compute in float32, so each differs from the exact result by its own roundings. One rounding
changes a value by at most a factor 1 + u, u = 2**-24; k of them in a row by ``gamma(k) = k u / (1 - k u)``.
A sum of products is off by at most gamma(k) times the sum of their magnitudes, where k is the length
of the longest chain of roundings on the way to it. The two sides differ by at most the sum of their
errors. The bounds are per element. A float32 sum of n <= 10,000 numbers in PyTorch has chains of at
most 96 additions (cascade of four levels of 16, then vector lanes): ``SUM``.

A bound function returns the bounds and where they hold; elsewhere rounding decides what is kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from golden_cases import Golden
from torch import Tensor

U = 2.0**-24
SUM = 96

Bound = tuple[Tensor, Tensor]


def gamma(roundings: int) -> float:
    return roundings * U / (1 - roundings * U)


def bound_linear(golden: Golden) -> Bound:
    """Weight, product, N - 1 sums, division and its divisor's N: 2 N + 2 roundings of ``sum |w x| / |sum w|``."""
    weights = golden.group["weight"]
    total = sum(weights) if golden.group["normalize"] else 1.0
    size = sum(abs(w / total) * t.double().abs() for w, t in zip(weights, golden.tensors, strict=True))
    return 2 * gamma(2 * len(weights) + 2) * size, torch.ones_like(golden.out, dtype=torch.bool)


def bound_sparse(golden: Golden) -> Bound:
    """``base + m``: one rounding of the sum, and those of ``m``, relative to ``lambda sum |f d| / divisor``.

    On the way to m: delta, weight, product, lambda, its product, division (6), N - 1 sums and the N of the
    divisor; a rescale adds its ratio, its product and two norms (2 + 2 SUM), or PEFT's 1 / density (3).
    Not compared: elements at the trim threshold where more are equal than may stay, since mergekit keeps
    any of them; and, with a rescale, elements whose vote is so close to 0 that its own rounding decides it.
    """
    group, deltas = golden.group, golden.deltas
    compared = torch.ones_like(golden.out, dtype=torch.bool)
    masks = golden.masks
    if golden.method.name in ("breadcrumbs", "breadcrumbs_ties", "magnitude_prune", "ties"):
        masks, compared = _trimmed(golden)
    masks = masks or [compared] * group.models
    peft = group.semantics == "peft"
    rescales = (
        bool(golden.masks) if peft else group.values.get("rescale", False) and golden.method.name != "task_arithmetic"
    )
    kept = [d * m for d, m in zip(deltas, masks, strict=True)]
    ratios = [1.0] * group.models
    if rescales and not peft:
        ratios = [(d.abs().sum() / k.abs().sum()).item() for d, k in zip(deltas, kept, strict=True)]
    elif rescales:
        ratios = [1 / density for density in group["density"]]
    terms = [w * r * d for w, r, d in zip(group["weight"], ratios, kept, strict=True)]
    roundings = 2 * group.models + 5 + (0 if not rescales else 3 if peft else 2 + 2 * SUM)

    size, divisor = sum(t.abs() for t in terms), torch.ones_like(kept[0])
    if golden.method.name.endswith("ties") or golden.method.name == "della":
        frequency = group.values.get("majority_sign_method") == "frequency"
        votes = [d.sign() for d in kept] if frequency else kept if peft else terms
        vote, scale = sum(votes), sum(v.abs() for v in votes)
        if rescales and not frequency:
            compared = compared & ~(vote.abs() < 2 * gamma(roundings) * scale)
        agrees = [v.sign() == torch.where(vote >= 0, 1.0, -1.0) for v in votes]
        size = sum(t.abs() * a for t, a in zip(terms, agrees, strict=True))
        if peft or group["normalize"]:
            divisor = sum((1.0 if peft else w) * a for w, a in zip(group["weight"], agrees, strict=True))
    elif group.values.get("normalize"):
        divisor = torch.full_like(size, abs(sum(group["weight"])))
    size = abs(group.values.get("lambda", 1.0)) * size / torch.where(divisor == 0, 1.0, divisor)
    return 2 * (gamma(roundings) * size + gamma(1) * (golden.base.double().abs() + size)), compared


def _trimmed(golden: Golden) -> tuple[list[Tensor], Tensor]:
    """Return the kept elements of each delta, and where they are certain."""
    masks, certain = [], torch.ones_like(golden.out, dtype=torch.bool)
    for k, delta in enumerate(golden.deltas):
        magnitudes, numel = delta.abs(), delta.numel()
        density, outliers = golden.group["density"][k], golden.group.values.get("gamma", [0.0] * (k + 1))[k]
        kept = numel if density >= 1 else max(1, int(density * numel))
        dropped = 0 if density >= 1 else min(int(outliers * numel), numel - kept)
        inside, above = _largest(magnitudes, kept + dropped), _largest(magnitudes, dropped)
        masks.append(inside[0] & ~above[0])
        certain &= inside[1] & above[1]
    return masks, certain


def _largest(magnitudes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` largest elements, and where they do not equal a threshold that more elements equal."""
    certain = torch.ones_like(magnitudes, dtype=torch.bool)
    if count == 0:
        return ~certain, certain
    threshold = magnitudes.flatten().kthvalue(magnitudes.numel() - count + 1).values
    largest = magnitudes >= threshold
    return largest, certain if largest.sum() == count else magnitudes != threshold


def bound_slerp(golden: Golden) -> Bound:
    """From the base to the model, whole tensors; colinear beyond a cosine of 0.9995."""
    assert golden.base is not None
    t = golden.group["t"]
    return _bound_arc(golden.base.double(), golden.tensors[0].double(), 1 - t, t, None, 0.9995)


def bound_nuslerp(golden: Golden) -> Bound:
    """Between two models, or their deltas: then with a rounding of the delta and one of the sum with the base."""
    group = golden.group
    total = sum(group["weight"])
    dim = None if group["nuslerp_flatten"] else 0 if group["nuslerp_row_wise"] else -1
    vectors = [t.double() for t in golden.tensors] if golden.base is None else golden.deltas
    bound, compared = _bound_arc(*vectors, *(weight / total for weight in group["weight"]), dim, line=1.0)
    if golden.base is not None:
        bound = bound + 2 * gamma(1) * (golden.base.double().abs() + golden.out.double().abs() + bound)
    return bound, compared


def _bound_arc(a: Tensor, b: Tensor, share_a: float, share_b: float, dim: int | None, line: float) -> Bound:
    """Coefficients, their products and one sum, relative to ``|c0 a| + |c1 b|``; the other tool's angle is in float32.

    Its cosine is off by at most gamma(2 SUM + 6) (two norms under a root, their divisions, and a dot product of
    unit vectors), and the coefficients by that times their slope in the cosine, and 8 roundings. Twice the slope
    covers its change over so small an interval; it is finite for equal directions, and not compared is what lies close
    to opposite ones, where it is not. Each vector along ``dim`` has its own angle; beyond the cosine ``line`` the
    interpolation is linear.
    """
    dot, square_a, square_b = ((x * y).sum(dim, keepdim=dim is not None) for x, y in ((a, b), (a, a), (b, b)))
    cosine = (dot / (square_a.sqrt() * square_b.sqrt())).clamp(-1, 1)
    off, angle = gamma(2 * SUM + 6), cosine.acos().clamp(min=1e-4)
    sine = angle.sin()
    bound = torch.zeros_like(a)
    for vector, share in ((a, share_a), (b, share_b)):
        coefficient = (share * angle).sin() / sine
        slope = (share * (share * angle).cos() - coefficient * angle.cos()) / sine**2
        straight = cosine.abs() > line
        error = torch.where(straight, 0.0, 2 * slope.abs() * off)
        coefficient = torch.where(straight, share, coefficient).abs()
        bound = bound + (error + gamma(8) * coefficient + 2 * gamma(4) * coefficient) * vector.abs()
    return bound, (cosine.abs() > line) | (1 + cosine > 100 * off).expand(a.shape)


def bound_model_stock(golden: Golden) -> Bound:
    """The other tool rounds ``t mean(x) + (1 - t) base``: N + 5 roundings of its terms; its c is in float32.

    c is off by at most gamma(2 SUM + 6), and t by that times its slope N / (1 + (N - 1) c)**2, doubled to cover
    the slope's change, and 4 roundings. The result moves by the error of t times the mean delta.
    """
    assert golden.base is not None
    deltas, count, base = golden.deltas, golden.group.models, golden.base.double().abs()
    dim = -1 if golden.group["filter_wise"] else None
    sums = {
        (i, j): (deltas[i] * deltas[j]).sum(dim, keepdim=dim is not None) for i in range(count) for j in range(count)
    }
    pairs = list(itertools.combinations(range(count), 2))
    cosine = sum(sums[i, j] / (sums[i, i] * sums[j, j]).sqrt() for i, j in pairs) / len(pairs)
    denominator = 1 + (count - 1) * cosine
    t = count * cosine / denominator
    error = 2 * count / denominator**2 * gamma(2 * SUM + 6) + gamma(4) * t.abs()
    mean_delta = sum(d.abs() for d in deltas) / count
    size = t.abs() * sum(x.double().abs() for x in golden.tensors) / count + (1 - t).abs() * base
    return 2 * gamma(count + 5) * size + error * mean_delta, torch.ones_like(base, dtype=torch.bool)


def bound_directions(golden: Golden) -> Bound:
    """A mean of directions times a mean norm: N + 5 roundings of the terms of ours, whose coefficients are in float64.

    The other tool makes units (a norm and a division: SUM + 2 roundings), their weighted sum (N + 1), its norm and a
    division (SUM + 2), for every step a dot product with the mean, which it subtracts (SUM + 4; a wrong length of the
    mean goes away when it is divided by its norm, SUM + 2), and the mean norm (SUM + N + 3): per step
    ``gamma(4 SUM + 2 N + 14)`` of ``sum |c_k v_k| + |m|``. Steps shrink what is wrong before them to less than half.
    """
    vectors = [t.double() for t in golden.tensors] if golden.base is None else golden.deltas
    result = golden.out.double() if golden.base is None else golden.out.double() - golden.base.double()
    weights = golden.group.values.get("weight", (1.0,) * golden.group.models)
    norms = [v.norm() for v in vectors]
    size = sum(w * norm for w, norm in zip(weights, norms, strict=True))
    length = sum(w * v / norm for w, v, norm in zip(weights, vectors, norms, strict=True)).norm()
    terms = sum((size / length * w / norm * v).abs() for w, v, norm in zip(weights, vectors, norms, strict=True))
    terms = terms / (1.0 if "weight" in golden.group.values else golden.group.models)
    roundings = 4 * SUM + 2 * golden.group.models + 14
    bound = 2 * gamma(golden.group.models + 5) * terms + 2 * gamma(roundings) * (terms + result.abs())
    if golden.base is not None:
        bound = bound + 2 * gamma(1) * (golden.base.double().abs() + golden.out.double().abs() + bound)
    return bound, torch.ones_like(bound, dtype=torch.bool)


BOUNDS: dict[str, Callable[[Golden], Bound]] = {
    "breadcrumbs": bound_sparse,
    "breadcrumbs_ties": bound_sparse,
    "dare_linear": bound_sparse,
    "dare_ties": bound_sparse,
    "della": bound_sparse,
    "della_linear": bound_sparse,
    "karcher": bound_directions,
    "linear": bound_linear,
    "magnitude_prune": bound_sparse,
    "model_stock": bound_model_stock,
    "multislerp": bound_directions,
    "nuslerp": bound_nuslerp,
    "slerp": bound_slerp,
    "task_arithmetic": bound_sparse,
    "ties": bound_sparse,
}
