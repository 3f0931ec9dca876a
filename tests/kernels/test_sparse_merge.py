"""The fused sparse merge: worked examples, chunking, aliasing, and what the arguments refuse."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from keep_rules import COLUMNS, check_columns
from kernel_cases import Draw, Variant, blank, random_words, same_bits, variants

from fastmerge import kernels
from fastmerge.kernels import GRID, keep_all, keep_random, sparse_merge

EVERY = [Variant("reference"), *variants()]


@pytest.mark.parametrize("variant", EVERY, ids=lambda v: v.label)
@pytest.mark.parametrize(
    ("vote", "divide", "expected"),
    [
        # Contributions of the three elements: (2, -1, 4), (-3, 1, 0), (0, 0, 0); base 10.
        ("none", "none", [15.0, 8.0, 10.0]),
        ("none", "count", [10 + 5 / 3, 10 - 2 / 3, 10.0]),
        ("none", "weights", [11.25, 9.5, 10.0]),
        ("weighted", "none", [16.0, 7.0, 10.0]),
        ("weighted", "weights", [12.0, 7.0, 10.0]),
        ("weighted", "count", [13.0, 7.0, 10.0]),
        # Deltas: (2, -1, 2), (-3, 1, 0), so the same signs are elected.
        ("sum", "count", [13.0, 7.0, 10.0]),
        # Signs (+, -, +) elect +, (-, +, 0) elect + at a tie.
        ("count", "none", [16.0, 11.0, 10.0]),
    ],
)
def test_worked_example(variant, vote, divide, expected):
    base = torch.tensor([10.0, 10.0, 10.0])
    tensors = [base + torch.tensor(d) for d in ([2.0, -3.0, 0.0], [-1.0, 1.0, 0.0], [2.0, 0.0, 0.0])]
    out = blank(3)
    with variant.active():
        sparse_merge(
            out, base, tensors, factors=[1.0, 1.0, 2.0], keeps=[keep_all()] * 3, vote=vote, divide=divide
        )  # fmt: skip
    torch.testing.assert_close(out, torch.tensor(expected), rtol=2e-7, atol=0)


@pytest.mark.parametrize("variant", EVERY, ids=lambda v: v.label)
@pytest.mark.parametrize("vote", ["none", "weighted", "sum", "count"])
def test_dropped_nan_and_infinity_stay_visible(variant, vote):
    base, tensor = torch.zeros(4), torch.tensor([float("nan"), float("inf"), 1.0, -0.0])
    out = blank(4)
    with variant.active():
        sparse_merge(out, base, [tensor, base], factors=[1.0, 1.0], keeps=[keep_random(0, 0, 2**32)] * 2, vote=vote)
    assert out.isnan().tolist() == [True, True, False, False]


@pytest.mark.parametrize("variant", EVERY, ids=lambda v: v.label)
def test_a_dropped_element_of_a_negative_factor_adds_positive_zero(variant):
    out = blank(1)
    with variant.active():
        drop = keep_random(0, 0, 2**32)
        sparse_merge(out, torch.tensor([-0.0]), [torch.tensor([1.0])], factors=[-1.0], keeps=[drop])
    assert same_bits(out, torch.tensor([0.0]))


@pytest.mark.parametrize("variant", EVERY, ids=lambda v: v.label)
def test_columns_are_drawn_as_in_the_whole(variant, generator):
    for shape, columns in COLUMNS:
        for dtypes in ([torch.bfloat16] * 3, [torch.float32, torch.float16, torch.float32]):
            base, *tensors = (torch.randn(shape, generator=generator).flatten().to(dtype) for dtype in dtypes)
            with variant.active():
                check_columns(shape, columns, base, tensors, sparse_merge)


def test_rules_of_columns_are_checked():
    rule = keep_random(0, 0, 1)
    for keep, numbers in ((rule, (-1, 3, 9)), (rule, (0, 0, 9)), (rule, (0, 3, 2)), (keep_all(), (0, 3, 9))):
        with pytest.raises(ValueError, match="expected a random rule and 0 <= start, 1 <= row <= stride"):
            kernels.keep_on_rows(keep, *numbers)
    out = torch.zeros(6)
    rules = [kernels.keep_on_rows(rule, 0, 3, 9), rule]
    with pytest.raises(ValueError, match=r"random rules of parts \[\(0, 0, 0\), \(0, 3, 9\)\] .* expected one part"):
        sparse_merge(out, out, [out, out], factors=[1.0, 1.0], keeps=rules)
    partials = torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="a rule of a strided part; norms are summed over chunks of whole tensors"):
        kernels.norm_partials(partials, [out], None, rules[:1])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    numel=st.integers(1, 3000),
    cut=st.integers(0, 3000),
    offset=st.sampled_from([0, 5, 2**33]),
)
def test_chunks_make_the_whole(seed, numel, cut, offset):
    """Any cut gives the bits of the whole, for every keep rule; out may be one of the inputs."""
    rng, cut = random.Random(seed), min(cut, numel)
    inputs = Draw(rng, torch.Generator().manual_seed(seed), numel, rng.randint(1, 5))
    inputs.offset = offset
    keeps = inputs.keeps()
    vote, divide = rng.choice(["none", "weighted", "sum", "count"]), rng.choice(["none", "weights", "count"])
    variant = rng.choice(EVERY)

    def merge(out, base, tensors, start):
        sparse_merge(
            out, base, tensors, factors=inputs.weights, keeps=keeps, vote=vote, divide=divide, offset=offset + start
        )

    with variant.active():
        whole = blank(numel, dtype=inputs.base.dtype)
        merge(whole, inputs.base, inputs.tensors, 0)
        parts = inputs.base.clone()
        for start, stop in ((0, cut), (cut, numel)):
            part = parts[start:stop]
            merge(part, part, [t[start:stop] for t in inputs.tensors], start)
    assert same_bits(parts, whole)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), order=st.permutations(range(4)))
def test_two_votes_by_count_do_not_depend_on_the_order_of_integers(seed, order):
    """With small integers no sum is rounded, so the order of the models does not matter."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.zeros(500)
    tensors = [torch.randint(-8, 9, (500,), generator=generator).float() for _ in range(4)]
    weights = [1.0, 2.0, 3.0, 4.0]
    for vote in ("none", "weighted", "sum", "count"):
        results = []
        for indices in (range(4), order):
            out = blank(500)
            sparse_merge(
                out, base, [tensors[i] for i in indices], factors=[weights[i] for i in indices],
                keeps=[keep_all()] * 4, vote=vote,
            )  # fmt: skip
            results.append(out)
        assert torch.equal(*results)


def test_arguments():
    base, tensor, out = torch.zeros(3), torch.ones(3), torch.empty(3)
    good = {"factors": [1.0], "keeps": [keep_all()]}
    for change, message in [
        ({"factors": [1.0, 2.0]}, "factors has 2 values; expected 1, one per tensor"),
        ({"factors": [float("nan")]}, r"factors\[0\] is nan; expected a finite float32 value"),
        ({"weights": [1e39]}, r"weights\[0\] is 1e\+39; expected a finite float32 value"),
        ({"keeps": []}, "keeps has 0 rules; expected 1, one per tensor"),
        ({"vote": "majority"}, "vote is 'majority'; expected one of none, weighted, sum, count"),
        ({"divide": "two"}, "divide is 'two'; expected one of none, weights, count"),
        ({"offset": -1}, "offset is -1; expected a non-negative index"),
    ]:
        with pytest.raises(ValueError, match=message):
            sparse_merge(out, base, [tensor], **{**good, **change})
    with pytest.raises(ValueError, match=r"tensors\[0\] has shape \(4,\), out has \(3,\)"):
        sparse_merge(out, base, [torch.ones(4)], **good)
    with pytest.raises(ValueError, match=r"tensors\[0\] is not contiguous \(strides \(2,\)\)"):
        sparse_merge(out, base, [torch.ones(6)[::2]], **good)
    with pytest.raises(ValueError, match=r"base has dtype torch\.float64; expected float32, bfloat16 or float16"):
        sparse_merge(out, base.double(), [tensor], **good)


@pytest.mark.parametrize("offset", [0, 1, 31, 32, 77, GRID + 5])
def test_parts_of_a_mask(offset, generator):
    """A mask is of the whole tensor: element i of a part that starts at ``offset`` has bit ``offset + i``."""
    words = random_words(kernels.mask_words(offset + 3000), generator)
    bits = torch.tensor([words[i >> 5].item() >> (i & 31) & 1 for i in range(offset, offset + 3000)]).float()
    for variant in EVERY:
        out = blank(3000)
        with variant.active():
            rule = kernels.keep_masked(words)
            sparse_merge(out, torch.zeros(3000), [torch.ones(3000)], factors=[1.0], keeps=[rule], offset=offset)
        assert torch.equal(out, bits), variant.label


@pytest.mark.parametrize("first", [32, 2**33])
def test_masks_that_begin_with_a_part(first, generator):
    words = random_words(kernels.mask_words(3000 + 45), generator)
    bits = torch.tensor([words[i >> 5].item() >> (i & 31) & 1 for i in range(45, 3045)]).float()
    for variant in EVERY:
        out = blank(3000)
        with variant.active():
            rule = kernels.keep_masked(words, first)
            sparse_merge(out, torch.zeros(3000), [torch.ones(3000)], factors=[1.0], keeps=[rule], offset=first + 45)
        assert torch.equal(out, bits), variant.label
    with pytest.raises(ValueError, match=f"mask begins with element {first}; the first one here is {first - 1}"):
        sparse_merge(out, out, [out], factors=[1.0], keeps=[rule], offset=first - 1)
    with pytest.raises(ValueError, match="mask has 96 words; the last element here needs 97"):
        sparse_merge(out, out, [out], factors=[1.0], keeps=[rule], offset=first + 96)
    with pytest.raises(ValueError, match="first is 31; expected a multiple of 32"):
        kernels.keep_masked(words, 31)


def test_masks_are_checked():
    out, words = torch.zeros(64), torch.zeros(2, dtype=torch.int32)
    for mask, offset, message in [
        (words, 1, r"keeps\[0\]\.mask has 2 words; the last element here needs 3"),
        (
            words.float(),
            0,
            r"keeps\[0\]\.mask is torch\.float32 \(2,\), strides \(1,\); expected contiguous int32 words",
        ),
        (
            torch.zeros(4, dtype=torch.int32)[::2],
            0,
            r"strides \(2,\); expected contiguous int32 words in one dimension",
        ),
        (words.to("meta"), 0, r"keeps\[0\]\.mask is on meta, tensors\[0\] is on cpu"),
    ]:
        with pytest.raises(ValueError, match=message):
            sparse_merge(out, out, [out], factors=[1.0], keeps=[kernels.keep_masked(mask)], offset=offset)
    with pytest.raises(ValueError, match=r"keeps\[0\]\.mask is None; expected contiguous int32 words"):
        sparse_merge(out, out, [out], factors=[1.0], keeps=[kernels.Keep(kernels.keep.RULE_MASK)])


def test_break_indices_of_a_shifted_chunk():
    """A boundary in global indices cuts a chunk that starts beyond 2**32 at the right element."""
    base, tensor = torch.zeros(100), torch.ones(100)
    offset = 2**33 + GRID
    rule = kernels.keep_top(kernels.Boundary(0x3F800000, offset + 37))
    for variant in EVERY:
        out = blank(100)
        with variant.active():
            sparse_merge(out, base, [tensor], factors=[1.0], keeps=[rule], offset=offset)
        assert out.sum() == 37 and torch.equal(out[:37], torch.ones(37)), variant.label


@pytest.mark.parametrize("weights", [[0.5], [0.1, 0.2, -0.7], [1e-9, 0.0], [1.0, -1.0], [3e38, 3e38], [1e-45, 2e-45]])
def test_the_constant_divisor_is_a_sum_in_float32(weights):
    total = torch.tensor(weights[0])
    for weight in weights[1:]:
        total = total + torch.tensor(weight)
    expected = 1.0 if total.abs() < 1e-8 else total.item()
    tensors = [torch.ones(1)] * len(weights)
    job = kernels.MergeJob(tensors[0], tensors[0], tensors, weights, [kernels.keep_all()] * len(weights))
    assert job.divisor == 1.0
    assert job._replace(divide="weights").divisor == expected
    assert job._replace(divide="count").divisor == len(weights)
    assert job._replace(divide="weights", vote="sum").divisor == 1.0
