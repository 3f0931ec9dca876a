"""DELLA: probabilities by rank, the norm, rows, what needs no mask, and what is refused."""

import pytest
import torch
from kernel_cases import blank

from fastmerge import functional, kernels
from fastmerge.kernels import GRID
from fastmerge.kernels.keep import kept
from fastmerge.methods import Group, get_method
from fastmerge.steps.apply import SparseMerge
from fastmerge.steps.driver import solve
from fastmerge.steps.source import Chunk, Resident

DELLA = ["della", "della_linear"]


def masks_of(tensors, base, rows, densities, epsilons, seed, name):
    """The keep masks of the models, from the operation itself."""
    found = []
    for k, (tensor, density, epsilon) in enumerate(zip(tensors, densities, epsilons, strict=True)):
        mask = blank(kernels.mask_words(tensor.numel()), dtype=torch.int32)
        ranked = kernels.Ranked(k, density, epsilon)
        kernels.rank_mask([mask], [tensor], base, [ranked], rows=rows, key=kernels.tensor_key(seed, name))
        found.append(kept(torch.zeros(tensor.numel()), kernels.keep_masked(mask), 0).view(base.shape))
    return found


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((5,), (1, 5, 1)), ((7, 40), (7, 40, 1)), ((3, 16, 24), (3, 16, 24)), ((2, 3, 4, 5), (2, 3, 20))],
)
def test_rows_and_formula(shape, rows, generator):
    """In float64 from the masks: thinned deltas of their old norm, elected, divided, times lambda."""
    base = torch.randn(shape, generator=generator)
    tensors = [base + 0.1 * torch.randn(shape, generator=generator) for _ in range(3)]
    weights, densities, epsilons = (0.5, 0.3, 0.7), (0.5, 0.4, 0.6), (0.2, 0.1, 0.0)
    masks = masks_of(tensors, base, rows, densities, epsilons, 9, "layer")
    terms = []
    for tensor, mask, weight in zip(tensors, masks, weights, strict=True):
        delta = (tensor - base).double()
        thinned = delta * mask
        ratio = delta.abs().sum() / thinned.abs().sum() if mask.any() else 1.0
        terms.append(weight * ratio * thinned)
    linear = base + 1.2 * sum(terms)
    sign = torch.where(sum(terms) >= 0, 1.0, -1.0)
    agree = [term.sign() == sign for term in terms]
    divisor = sum(w * a for w, a in zip(weights, agree, strict=True))
    elected = base + 1.2 * sum(t * a for t, a in zip(terms, agree, strict=True)) / torch.where(divisor == 0, 1, divisor)
    given = {"weight": weights, "density": densities, "epsilon": epsilons, "lambda_": 1.2, "seed": 9, "name": "layer"}
    for name, expected in (("della_linear", linear), ("della", elected)):
        merged = functional.merge_tensors(base, tensors, method=name, **given)
        torch.testing.assert_close(merged.double(), expected.double(), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", DELLA)
def test_norm_is_kept_unless_asked_otherwise(name, generator):
    base, delta = torch.zeros(64, 512), torch.randn(64, 512, generator=generator)
    merged = functional.merge_tensors(base, delta, method=name, weight=1, density=0.3, epsilon=0.2)
    assert abs(merged.abs().sum() / delta.abs().sum() - 1) < 1e-5
    raw = functional.merge_tensors(base, delta, method=name, weight=1, density=0.3, epsilon=0.2, rescale=False)
    assert torch.equal(raw, torch.where(raw != 0, delta, 0.0))
    assert abs((raw != 0).float().mean() - 0.3) < 5 * (0.21 / delta.numel()) ** 0.5
    # The larger the magnitude, the likelier it is kept.
    large = delta.abs() > delta.abs().median(dim=1, keepdim=True).values
    assert (raw[large] != 0).float().mean() > (raw[~large] != 0).float().mean() + 0.15


@pytest.mark.parametrize("name", DELLA)
def test_whole_densities_need_no_mask(name, generator):
    """Densities 0 and 1 need neither a mask nor the whole tensor, whatever epsilon is."""
    base = torch.randn(300, generator=generator)
    tensors = [base + torch.randn(300, generator=generator) for _ in range(2)]
    values = {"weight": (0.5, 0.5), "density": (1.0, 0.0), "epsilon": (0.15, 0.15), "normalize": False,
              "rescale": False, "lambda": 1.0, "int8_mask": False}  # fmt: skip
    method, group = get_method(name), Group("w", (300,), 2, values)
    assert method.scratch_bytes(group) is None
    step = solve(method, group, Resident(base, tensors))
    assert isinstance(step, SparseMerge) and [keep.mask for keep in step.keeps] == [None, None]
    out = blank(300)
    step(out, Chunk(base, tuple(tensors)))
    assert torch.equal(out, base + (tensors[0] - base) * 0.5)


@pytest.mark.parametrize("name", DELLA)
def test_apply_takes_parts(name, generator):
    """The masks are of the whole tensor; the apply step may take it in parts."""
    shape, numel = (3, GRID), 3 * GRID
    base = torch.randn(shape, generator=generator)
    tensors = [base + 0.1 * torch.randn(shape, generator=generator) for _ in range(2)]
    values = {"weight": (0.5, 0.5), "density": (0.5, 0.7), "epsilon": (0.1, 0.2), "normalize": True,
              "rescale": True, "lambda": 1.0, "int8_mask": False}  # fmt: skip
    method, group = get_method(name), Group("w", shape, 2, values)
    assert method.scratch_bytes(group) > 2 * numel / 8
    step = solve(method, group, Resident(base, tensors))
    whole, parts = blank(*shape), blank(*shape)
    step(whole, Chunk(base, tuple(tensors)))
    for row in range(3):
        step(parts[row], Chunk(base[row], tuple(t[row] for t in tensors), row * GRID))
    assert torch.equal(parts, whole)


@pytest.mark.parametrize("name", DELLA)
@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.15), (0.9, 0.15), (0.5, 0.5), (0.15, 0.15)])
def test_probabilities_outside_are_refused(name, density, epsilon):
    with pytest.raises(
        ValueError,
        match=rf"tensor: model 1 has density {density} and epsilon {epsilon}; density - epsilon must be above 0",
    ):
        functional.merge_tensors(
            torch.zeros(4), [torch.ones(4)] * 2, method=name, weight=1, density=[0.5, density], epsilon=[0.1, epsilon]
        )  # fmt: skip


@pytest.mark.parametrize("name", DELLA)
def test_an_element_alone_in_its_row_is_kept_with_probability_density(name):
    base, ones = torch.zeros(20000, 1), torch.ones(20000, 1)
    merged = functional.merge_tensors(base, ones, method=name, weight=1, density=0.6, epsilon=0.3, rescale=False)
    assert abs(merged.mean() - 0.6) < 5 * (0.24 / 20000) ** 0.5
