"""Every method against what other tools return, within bounds that are derived here.

Both sides compute in float32, so each differs from the exact result by its own roundings. One rounding
changes a value by at most a factor 1 + u, u = 2**-24; k of them in a row by ``gamma(k) = k u / (1 - k u)``.
A sum of products is off by at most gamma(k) times the sum of their magnitudes, where k is the length
of the longest chain of roundings on the way to it. The two sides differ by at most the sum of their
errors. The bounds are per element. A float32 sum of n <= 10,000 numbers in PyTorch has chains of at
most 96 additions (cascade of four levels of 16, then vector lanes): ``SUM``.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from golden_cases import FOLDER, Golden, load_mergekit, load_peft, mergekit_cases, peft_cases
from torch import Tensor

from fastmerge.kernels import use_backend
from fastmerge.methods import all_methods
from fastmerge.steps.driver import merge_source
from fastmerge.steps.source import Resident

U = 2.0**-24
SUM = 96
# Cases that a method refuses, and the words it uses.
REFUSED = {"model_stock_rows": "filter_wise"}


def gamma(roundings: int) -> float:
    return roundings * U / (1 - roundings * U)


def bound_linear(golden: Golden) -> tuple[Tensor, Tensor]:
    """Weight, product, N - 1 sums, division and its divisor's N: 2 N + 2 roundings of ``sum |w x| / |sum w|``."""
    weights = golden.group["weight"]
    total = sum(weights) if golden.group["normalize"] else 1.0
    size = sum(abs(w / total) * t.double().abs() for w, t in zip(weights, golden.tensors, strict=True))
    return 2 * gamma(2 * len(weights) + 2) * size, torch.ones_like(golden.out, dtype=torch.bool)


def bound_sparse(golden: Golden) -> tuple[Tensor, Tensor]:
    """``base + m``: one rounding of the sum, and those of ``m``, relative to ``lambda sum |f d| / divisor``.

    On the way to m: delta, weight, product, lambda, its product, division (6), N - 1 sums and the N of the
    divisor; a rescale adds its ratio, its product and two norms (2 + 2 SUM), or PEFT's 1 / density (3).
    Not compared: elements at the trim threshold where more are equal than may stay, since mergekit keeps
    any of them; and, with a rescale, elements whose vote is so close to 0 that its own rounding decides it.
    """
    group, deltas = golden.group, golden.deltas
    compared = torch.ones_like(golden.out, dtype=torch.bool)
    masks = golden.masks
    if golden.method.name in ("breadcrumbs", "ties"):
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


def bound_slerp(golden: Golden) -> tuple[Tensor, Tensor]:
    """Coefficients, their products and one sum, relative to ``|c0 a| + |c1 b|``; the other tool's angle is in float32.

    Its cosine is off by at most gamma(2 SUM + 6) (two norms under a root, their divisions, and a dot product of
    unit vectors), the angle by that over sin, and the coefficients by their slope at the angle and 8 roundings.
    """
    assert golden.base is not None
    t, a, b = golden.group["t"], golden.base.double(), golden.tensors[0].double()
    cosine = ((a * b).sum() / (a.norm() * b.norm())).item()
    if abs(cosine) > 0.9995:
        coefficients, errors = [1 - t, t], [gamma(2), gamma(2)]
    else:
        angle = math.acos(cosine)
        coefficients = [math.sin(s * angle) / math.sin(angle) for s in (1 - t, t)]
        slopes = [
            abs(s * math.cos(s * angle) - math.sin(s * angle) / math.tan(angle)) / math.sin(angle) for s in (1 - t, t)
        ]
        # Twice the slope covers its change over so small an interval.
        errors = [2 * slope * gamma(2 * SUM + 6) / math.sin(angle) + gamma(8) for slope in slopes]
    size = abs(coefficients[0]) * a.abs() + abs(coefficients[1]) * b.abs()
    return 2 * gamma(3) * size + errors[0] * a.abs() + errors[1] * b.abs(), torch.ones_like(size, dtype=torch.bool)


def bound_model_stock(golden: Golden) -> tuple[Tensor, Tensor]:
    """The other tool rounds ``t mean(x) + (1 - t) base``: N + 5 roundings of its terms; its c is in float32.

    c is off by at most gamma(2 SUM + 6), and t by that times its slope N / (1 + (N - 1) c)**2, doubled to cover
    the slope's change, and 4 roundings. The result moves by the error of t times the mean delta.
    """
    assert golden.base is not None
    deltas, count, base = golden.deltas, golden.group.models, golden.base.double().abs()
    pairs = itertools.combinations(deltas, 2)
    cosine = sum(((a * b).sum() / (a.norm() * b.norm())).item() for a, b in pairs) / math.comb(count, 2)
    denominator = 1 + (count - 1) * cosine
    t = count * cosine / denominator
    error = 2 * count / denominator**2 * gamma(2 * SUM + 6) + gamma(4) * abs(t)
    mean_delta = sum(d.abs() for d in deltas) / count
    size = abs(t) * sum(x.double().abs() for x in golden.tensors) / count + abs(1 - t) * base
    return 2 * gamma(count + 5) * size + error * mean_delta, torch.ones_like(base, dtype=torch.bool)


BOUNDS = {
    "linear": bound_linear,
    "task_arithmetic": bound_sparse,
    "ties": bound_sparse,
    "breadcrumbs": bound_sparse,
    "dare_linear": bound_sparse,
    "dare_ties": bound_sparse,
    "della": bound_sparse,
    "della_linear": bound_sparse,
    "slerp": bound_slerp,
    "model_stock": bound_model_stock,
}
# The tool's result is its definition; formula tests stand in test_methods.py.
# mergekit has no spectral methods: tests/spectral/test_methods.py compares them with their formulas in float64.
WITHOUT_GOLDEN = {
    "consensus", "iso_c", "iso_cts", "knots", "passthrough", "task_arithmetic_sb", "ties_sb", "tsv_c", "tsvm",
}  # fmt: skip


def packed(kept: Tensor) -> Tensor:
    """Return a bool mask as the words of a keep rule."""
    bits = torch.zeros(-(-kept.numel() // 32) * 32, dtype=torch.int64)
    bits[: kept.numel()] = kept.flatten()
    words = (bits.view(-1, 32) << torch.arange(32)).sum(1)
    return (words - (words >> 31 << 32)).to(torch.int32)


def check(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge the inputs of a golden, with its masks for random methods, and compare."""
    if golden.masks:
        # The reference backend draws its masks here; the other tool's random stream is not ours.
        monkeypatch.setattr(
            "fastmerge.kernels.keep.keep_mask",
            lambda key, model, drop, offset, count, device: golden.masks[model].flatten()[offset : offset + count],
        )
        monkeypatch.setattr(
            "fastmerge.kernels.rank_mask",
            lambda mask, tensor, base, model, **_: mask.copy_(packed(golden.masks[model])),
        )
    out = torch.full_like(golden.out, float("nan"))
    with use_backend("reference" if golden.masks else None):
        merge_source(golden.method, golden.group, Resident(golden.base, golden.tensors), out)
    bound, compared = BOUNDS[golden.method.name](golden)
    difference = (out.double() - golden.out.double()).abs()
    where = f"{golden.case} {golden.group.name}"
    # Bands have two thresholds per model, and bfloat16 deltas many elements at each.
    least = 0.5 if "gamma" in golden.group.values else 0.75
    assert compared.double().mean() > least, f"{where}: only {compared.sum()} of {compared.numel()} are certain"
    worst = (difference / bound.clamp(min=torch.finfo(torch.float64).tiny))[compared].max().item()
    assert (difference <= bound)[compared].all(), f"{where}: {worst:.2f} times the bound"


@pytest.mark.parametrize("name", mergekit_cases(FOLDER))
def test_mergekit(name, monkeypatch):
    for golden in load_mergekit(FOLDER, name, mergekit_cases(FOLDER)[name]):
        check(golden, monkeypatch)


@pytest.mark.parametrize("name", [name for name in mergekit_cases(FOLDER) if name.startswith("della")])
def test_masks_of_mergekit_follow_the_ranks(name):
    """In the masks that mergekit drew, probabilities rise with the rank in our rows: by 2 epsilon, within 4.5 sigma."""
    for golden in load_mergekit(FOLDER, name, mergekit_cases(FOLDER)[name]):
        survey = next(golden.method.merge(golden.group))
        for delta, mask, (density, epsilon) in zip(golden.deltas, golden.masks, survey.chances, strict=True):
            order = delta.abs().view(survey.rows).argsort(dim=1, stable=True)
            rank = order.argsort(dim=1).double() / (survey.rows[1] - 1) - 0.5
            kept = mask.view(survey.rows).double() - density
            slope, noise = (rank * kept).sum() / (rank**2).sum(), 0.5 / (rank**2).sum().sqrt()
            assert abs(slope - 2 * epsilon) < 4.5 * noise, f"{golden.group.name}: {slope:.3f} for {2 * epsilon:.3f}"
            assert abs(kept.mean()) < 4.5 * 0.5 / kept.numel() ** 0.5


@pytest.mark.parametrize("name", peft_cases(FOLDER))
def test_peft(name, monkeypatch):
    for golden in load_peft(FOLDER, name, peft_cases(FOLDER)[name]):
        check(golden, monkeypatch)


@pytest.mark.parametrize("method", sorted(set(all_methods()) - WITHOUT_GOLDEN))
def test_all_of_mergekit(method, shared, monkeypatch):
    folder = shared / "goldens"
    cases = {name: case for name, case in mergekit_cases(folder).items() if case["method"] == method}
    assert cases, f"{method} has no golden; add one, or list it in WITHOUT_GOLDEN and test its formula"
    for name, case in cases.items():
        for golden in load_mergekit(folder, name, case):
            refusal = REFUSED.get(name.split(".")[0])
            if refusal is None:
                check(golden, monkeypatch)
            else:
                with pytest.raises(ValueError, match=refusal):
                    check(golden, monkeypatch)


def test_all_of_peft(shared, monkeypatch):
    cases = peft_cases(shared / "goldens")
    assert {case["function"] for case in cases.values()} >= {"task_arithmetic", "ties_total", "dare_ties_frequency"}
    for name, case in cases.items():
        for golden in load_peft(shared / "goldens", name, case):
            check(golden, monkeypatch)


def test_every_method_is_compared():
    assert set(all_methods()) == set(BOUNDS) | WITHOUT_GOLDEN
    assert {case["method"] for case in mergekit_cases(FOLDER).values()} == set(BOUNDS)
    assert all(
        "peft" in all_methods()[name].semantics for name in ("task_arithmetic", "ties", "dare_linear", "dare_ties")
    )
