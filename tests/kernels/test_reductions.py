"""Gram matrix, norms and low-rank update against float64, within the bounds that their contracts state."""

import pytest
import torch
from kernel_cases import Variant, same_bits, variants

from fastmerge import kernels
from fastmerge.kernels import (
    GRID,
    Boundary,
    gram_matrix,
    gram_partials,
    keep_all,
    keep_masked,
    keep_random,
    keep_top,
    low_rank_update,
    mask_words,
    norm_partials,
    weighted_sum,
)

EVERY = [Variant("reference"), *variants()]
NUMEL = 3 * GRID + 77


@pytest.fixture
def vectors(generator):
    base = torch.randn(NUMEL, generator=generator)
    return base, [base + 0.1 * torch.randn(NUMEL, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("variant", EVERY, ids=lambda v: v.label)
def test_gram_matrix_is_within_its_bound(variant, vectors):
    base, tensors = vectors
    partials = torch.empty(-(-NUMEL // GRID), 6, dtype=torch.float64)
    with variant.active():
        gram_partials(partials, tensors, base)
    deltas = torch.stack([t - base for t in tensors]).double()
    bound = 127 * 2**-53 * (deltas.abs() @ deltas.abs().T)
    # The product of torch has an error of its own, of the same kind.
    assert ((torch.from_numpy(gram_matrix(partials, 3)) - deltas @ deltas.T).abs() <= 2 * bound).all()


@pytest.mark.parametrize("variant", EVERY, ids=lambda v: v.label)
@pytest.mark.parametrize("power", [1, 2])
def test_norms_are_within_their_bound(variant, vectors, power):
    base, tensors = vectors
    partials = torch.empty(-(-NUMEL // GRID), 6, dtype=torch.float64)
    rules = [keep_all(), kernels.keep_random(3, 0, 2**32), kernels.keep_random(3, 1, 2**31)]
    with variant.active():
        norm_partials(partials, tensors, base, rules, power=power)
    total = kernels.total(partials)
    for k, tensor in enumerate(tensors):
        exact = ((tensor - base).double().abs() ** power).sum().item()
        assert abs(total[2 * k] - exact) <= 2 * 72 * 2**-53 * exact
    assert total[1] == total[0] and total[3] == 0 and 0 < total[5] < total[4]


@pytest.mark.parametrize("based", [True, False], ids=["base", "no base"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("power", [1, 2])
def test_norms_have_the_same_bits_everywhere(generator, power, dtype, based):
    """Whole chunks and the rest, every rule, and chunks where only a dropped element is not finite."""
    base, *tensors = (torch.randn(NUMEL, generator=generator).to(dtype) for _ in range(6))
    mask = torch.randint(-(2**31), 2**31, (mask_words(5 * GRID + NUMEL),), generator=generator).int()
    mask[5 * GRID // 32] = 0
    rules = [
        keep_all(), keep_random(3, 1, 2**31 + 12345), keep_random(2**63 + 5, 2, 2**32),
        keep_masked(mask), keep_top(Boundary(0x3F000000, 6 * GRID + 3)),
    ]  # fmt: skip
    tensors[3][7] = float("inf")
    tensors[2][GRID] = float("nan")
    found = {}
    for variant in EVERY:
        found[variant.label] = torch.full((4, 10), -7.0, dtype=torch.float64)
        with variant.active():
            norm_partials(
                found[variant.label], tensors, base if based else None, rules, power=power, offset=5 * GRID
            )  # fmt: skip
    expected = found["reference"]
    assert expected[0, 7].isnan() and expected[1, 5].isnan() and expected[2:].isfinite().all()
    assert all(same_bits(expected, other) for other in found.values())


@pytest.mark.parametrize("numel", [1, 31, 32, 33, GRID - 1, GRID, GRID + 1, NUMEL])
@pytest.mark.parametrize("dtypes", [(torch.bfloat16,) * 2, (torch.float32, torch.float16)], ids=["one", "mixed"])
def test_norms_note_what_they_draw(generator, numel, dtypes):
    """The bits that ``keep_mask`` has, in the words of these elements alone, where norms are finite and where not."""
    own, other = dtypes
    base = torch.randn(numel, generator=generator).to(own)
    tensors = [torch.randn(numel, generator=generator).to(dtype) for dtype in (own, other, own, own)]
    tensors[2][numel // 2] = float("nan")
    drops, offset = [0, 2**31, 0x8000_4321, 2**32], 2 * GRID
    rules = [keep_random(2**63 + 5, k, drop) for k, drop in enumerate(drops)]
    expected = torch.empty(-(-numel // GRID), 8, dtype=torch.float64)
    norm_partials(expected, tensors, base, rules, offset=offset, backend="reference")
    first, last = offset // 32, mask_words(offset + numel)
    for variant in EVERY:
        noting = [rule.noting(torch.full((last + 3,), -7, dtype=torch.int32)) for rule in rules]
        partials = torch.full_like(expected, float("nan"))
        with variant.active():
            norm_partials(partials, tensors, base, noting, offset=offset)
        assert same_bits(partials, expected)
        for k, (rule, drop) in enumerate(zip(noting, drops, strict=True)):
            assert (rule.drawn[:first] == -7).all() and (rule.drawn[last:] == -7).all()
            bits = ((rule.drawn[first:last, None] >> torch.arange(32)) & 1).flatten().bool()
            assert torch.equal(bits[:numel], kernels.keep_mask(2**63 + 5, k, drop, offset, numel))
            assert not bits[numel:].any()


def test_what_is_noted_has_room():
    tensor, partials = torch.ones(33), torch.empty(1, 2, dtype=torch.float64)
    few, floats, words = torch.empty(1, dtype=torch.int32), torch.empty(2), torch.empty(2, dtype=torch.int32)
    for rule, message in (
        (keep_random(1, 0, 5).noting(few), r"keeps\[0\]\.drawn has 1 words; the last element here needs 2"),
        (
            keep_random(1, 0, 5).noting(floats),
            r"keeps\[0\]\.drawn is torch\.float32 .*; expected contiguous int32",
        ),
        (keep_all().noting(words), "of rule 0 on cpu; expected None, except of random rules on the processor"),
    ):
        with pytest.raises(ValueError, match=message):
            norm_partials(partials, [tensor], None, [rule])


@pytest.mark.parametrize("variant", EVERY, ids=lambda v: v.label)
def test_parts_on_the_grid_make_the_whole(variant, vectors):
    base, tensors = vectors
    whole = torch.empty(-(-NUMEL // GRID), 6, dtype=torch.float64)
    part = torch.empty(2, 6, dtype=torch.float64)
    with variant.active():
        gram_partials(whole, tensors, base)
        gram_partials(part, [t[2 * GRID :] for t in tensors], base[2 * GRID :])
    assert torch.equal(part, whole[2:])


def test_arguments():
    tensor = torch.ones(3)
    with pytest.raises(ValueError, match=r"partials is torch\.float32 \(1, 1\); expected contiguous float64 \(1, 1\)"):
        gram_partials(torch.empty(1, 1), [tensor])
    with pytest.raises(ValueError, match="power is 3; expected 1 or 2"):
        norm_partials(torch.empty(1, 2, dtype=torch.float64), [tensor], None, [keep_all()], power=3)
    with pytest.raises(ValueError, match="offset is 5; expected a multiple of 16384"):
        norm_partials(torch.empty(1, 2, dtype=torch.float64), [tensor], None, [keep_all()], offset=5)
    with pytest.raises(ValueError, match="weights has 1 values; expected 2, one per tensor"):
        weighted_sum(torch.empty(3), [tensor, tensor], [1.0])
    with pytest.raises(ValueError, match="tensors is empty; expected at least one tensor"):
        weighted_sum(torch.empty(3), [], [])
    with pytest.raises(ValueError, match=r"up has shape \(2, 1\); expected \(3, 1\)"):
        low_rank_update(torch.empty(3, 4), torch.ones(3, 4), torch.ones(2, 1), torch.ones(1, 4), 1.0)
    with pytest.raises(ValueError, match="up has rank 0; expected at least one column"):
        low_rank_update(torch.empty(3, 4), torch.ones(3, 4), torch.ones(3, 0), torch.ones(0, 4), 1.0)


@pytest.mark.parametrize("variant", EVERY, ids=lambda v: v.label)
def test_low_rank_update_in_place(variant):
    weight = torch.arange(12.0).view(3, 4)
    up, down = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[1.0, 0.0, -1.0, 2.0]])
    expected = weight + 0.5 * up @ down
    with variant.active():
        low_rank_update(weight, weight, up, down, 0.5)
    assert torch.equal(weight, expected)
