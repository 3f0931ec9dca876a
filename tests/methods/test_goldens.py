"""Every method against what other tools return, within the bounds of ``golden_bounds``."""

from __future__ import annotations

import pytest
import torch
from golden_bounds import BOUNDS
from golden_cases import FOLDER, Golden, load_mergekit, load_peft, mergekit_cases, peft_cases
from torch import Tensor

from fastmerge.kernels import use_backend
from fastmerge.methods import all_methods
from fastmerge.steps.driver import merge_source
from fastmerge.steps.source import Resident

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
