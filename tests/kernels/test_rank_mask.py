"""Masks by rank: the formula by hand, its distribution, rows along any dimension, and what the arguments refuse."""

import pytest
import torch
from kernel_cases import Variant, blank, variants

from fastmerge import kernels
from fastmerge.kernels import Ranked, mask_words, rank_mask
from fastmerge.kernels.keep import kept
from fastmerge.kernels.philox import random_words

EVERY = [Variant("reference"), *variants()]
KEY = 0x9E3779B97F4A7C15


def bits_of(mask, numel):
    return kept(torch.zeros(numel), kernels.keep_masked(mask), 0)


def draw(tensor, rows, density=0.5, epsilon=0.15, base=None, model=0):
    mask = blank(mask_words(tensor.numel()), dtype=torch.int32)
    rank_mask([mask], [tensor], base, [Ranked(model, density, epsilon)], rows=rows, key=KEY)
    return bits_of(mask, tensor.numel())


def by_hand(tensor, rows, density, epsilon):
    """The contract in Python's integers, row by row."""
    outer, length, inner = rows
    words, values = random_words(KEY, 0, 0, tensor.numel()).tolist(), tensor.abs().tolist()
    first, last = (min(round((1 - density + sign * epsilon) * 2**32), 2**32 - 1) for sign in (1, -1))
    step = ((first - last) << 31) // max(1, length - 1) if length > 1 else 0
    first = first if length > 1 else round((1 - density) * 2**32)
    kept = [False] * tensor.numel()
    for start in (o * length * inner + i for o in range(outer) for i in range(inner)):
        row = range(start, start + length * inner, inner)
        for rank, index in enumerate(sorted(row, key=lambda index: values[index])):
            kept[index] = words[index] >= first - ((step * rank + 2**30) >> 31)
    return torch.tensor(kept)


@pytest.mark.parametrize("variant", EVERY, ids=lambda v: v.label)
@pytest.mark.parametrize("rows", [(1, 1, 1), (5, 1, 3), (1, 300, 1), (3, 100, 1), (2, 10, 15), (4, 3, 25), (3, 2, 50)])
@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.25), (0.375, 0.0), (0.5, 0.5 - 2**-20)])
def test_formula(variant, rows, density, epsilon, generator):
    numel = rows[0] * rows[1] * rows[2]
    # Many equal magnitudes, of both signs.
    tensor = torch.randint(-9, 10, (numel,), generator=generator).float()
    with variant.active():
        assert torch.equal(draw(tensor, rows, density, epsilon), by_hand(tensor, rows, density, epsilon))


@pytest.mark.parametrize("variant", EVERY, ids=lambda v: v.label)
@pytest.mark.parametrize(
    "kind",
    [
        "distinct",
        "equal",
        "two values",
        "mostly zero",
        "subnormal",
        "special",
        "two scales",
        "close bfloat16",
        "outliers",
    ],
)
@pytest.mark.parametrize("epsilon", [0.1, 0.4999])
def test_long_rows_of_any_magnitudes(variant, kind, epsilon, generator):
    """Every way to rank what a histogram leaves undecided gives the reference's bits; few and many are undecided."""
    shape = (3, 9001)
    normal = torch.randn(shape, generator=generator)
    tensor = {
        "distinct": normal,
        "equal": torch.ones(shape),
        "two values": torch.where(normal > 0.3, 1.0, 1.0 + 2**-23),
        "mostly zero": torch.where(normal > 1, normal, 0.0),
        "subnormal": normal * 1e-41,
        "special": torch.where(normal > 1, torch.nan, torch.where(normal < -1, torch.inf, normal)),
        "two scales": torch.where(normal > 0, normal, normal * 1e-12),
        # So far above the others that buckets below them would hold nothing.
        "outliers": torch.where(torch.arange(9001) % 3000 == 7, 1e6, normal),
        # Many equal magnitudes, and some between them.
        "close bfloat16": (8 * normal).bfloat16().float() - (8 * normal + normal.roll(1) / 4).bfloat16().float(),
    }[kind]
    with kernels.use_backend("reference"):
        expected = draw(tensor, (*shape, 1), 0.5, epsilon)
    with variant.active():
        assert torch.equal(draw(tensor, (*shape, 1), 0.5, epsilon), expected)
        # Along the other dimension, the same rows laid out by columns.
        columns = draw(tensor.t().contiguous(), (1, 9001, 3), 0.5, epsilon)
        with kernels.use_backend("reference"):
            assert torch.equal(columns, draw(tensor.t().contiguous(), (1, 9001, 3), 0.5, epsilon))


@pytest.mark.parametrize("variant", EVERY, ids=lambda v: v.label)
@pytest.mark.parametrize("rows", [(7, 13, 1), (5, 3000, 1), (4, 7, 5), (3, 9, 40)])
def test_slices_are_drawn_as_in_the_whole(variant, rows, generator):
    """Also where the tensor begins beyond 2**32 elements of a larger one."""
    outer, length, inner = rows
    size, numel = length * inner, outer * length * inner
    tensor = torch.randint(-9, 10, (numel,), generator=generator).float()
    base = torch.randn(numel, generator=generator).bfloat16()

    def draw_slices(begin, end, far):
        offset = far + begin * size
        mask = blank(mask_words(offset % 32 + (end - begin) * size), dtype=torch.int32)
        part = slice(begin * size, end * size)
        rank_mask(
            [mask], [tensor[part]], base[part], [Ranked(1, 0.5, 0.3)], rows=(end - begin, length, inner), key=KEY,
            offset=offset,
        )  # fmt: skip
        every = bits_of(mask, 32 * len(mask))
        found = every[offset % 32 :][: (end - begin) * size]
        assert every.sum() == found.sum()  # no bit beside those of the elements
        rule = kernels.keep_masked(mask, offset - offset % 32)
        assert torch.equal(kept(torch.zeros(len(found)), rule, offset), found)
        return found

    for far in (0, 2**33 // size * size):
        with kernels.use_backend("reference"):
            whole = draw_slices(0, outer, far)
        with variant.active():
            for begin, end in ((0, outer), (1, outer), (1, 2), (outer - 1, outer), (2, 2)):
                assert torch.equal(draw_slices(begin, end, far), whole[begin * size : end * size])


@pytest.mark.parametrize("variant", EVERY[1:], ids=lambda v: v.label)
@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 65, 129, 511, 767, 768, 1023, 4097, 33000, 70001])
def test_rows_of_any_length(variant, length, generator):
    """Short rows are ranked many at a time, those of 768 elements have buckets, of 65536 and more wider counts."""
    shape = (-(-5000 // length), length)
    base = torch.randn(shape, generator=generator).bfloat16()
    tensor = (base + torch.randn(shape, generator=generator) / 64).bfloat16()
    for t, b in [(tensor, base), (tensor.float() / 3, base.float() / 3), (tensor.half(), base)]:
        with kernels.use_backend("reference"):
            expected = draw(t, (*shape, 1), 0.5, 0.3, base=b)
        with variant.active():
            assert torch.equal(draw(t, (*shape, 1), 0.5, 0.3, base=b), expected)


@pytest.mark.parametrize("variant", EVERY[1:], ids=lambda v: v.label)
@pytest.mark.parametrize(("length", "inner"), [(33, 1), (65, 1), (100, 3), (127, 1), (257, 1), (1025, 1), (4097, 1)])
def test_rows_that_hardly_changed(variant, length, inner, generator):
    """Their zeros end in the middle of a word, and nearly so do the thresholds."""
    shape = (max(2, 2000 // length), length, inner)
    for changed in (0.0, 0.2, 0.6):
        tensor = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < changed)
        for density, epsilon in ((0.5, 0.4999), (0.9, 0.05), (0.9, 0.0999)):
            with kernels.use_backend("reference"):
                expected = draw(tensor, shape, density, epsilon)
            with variant.active():
                assert torch.equal(draw(tensor, shape, density, epsilon), expected)


@pytest.mark.parametrize("variant", EVERY[1:], ids=lambda v: v.label)
@pytest.mark.parametrize("rows", [(300, 29, 1), (40, 150, 1), (9, 1100, 1), (4, 50, 40)])
def test_models_of_one_call(variant, rows, generator):
    """Each has the mask that it has alone, whatever the others are: other scales, dtypes, probabilities, ties, NaN."""
    numel = rows[0] * rows[1] * rows[2]
    base = torch.randn(numel, generator=generator).bfloat16()
    normal = torch.randn(numel, generator=generator)
    # Rows of a model differ in scale, too.
    scales = torch.exp2(torch.arange(rows[0]) * 7 % 40 - 20.0).repeat_interleave(rows[1] * rows[2])
    tensors = [
        (base + normal / 64).bfloat16(), base + normal * scales, base.clone(), (base + normal).half(),
        torch.where(normal > 1, torch.nan, torch.where(normal < -1, torch.inf, normal)).bfloat16(),
    ]  # fmt: skip
    models = [Ranked(7, 0.5, 0.3), Ranked(0, 0.3, 0.1), Ranked(1, 0.5, 0.49), Ranked(3, 0.9, 0.0), Ranked(2, 0.5, 0.4)]
    masks = [blank(mask_words(numel), dtype=torch.int32) for _ in models]
    with variant.active():
        rank_mask(masks, tensors, base, models, rows=rows, key=KEY)
    for mask, tensor, (model, density, epsilon) in zip(masks, tensors, models, strict=True):
        with kernels.use_backend("reference"):
            assert torch.equal(bits_of(mask, numel), draw(tensor, rows, density, epsilon, base, model))


def test_probability_is_linear_in_the_rank():
    """Of 4000 rows, sixteenths of the ranks are kept as often as the formula says, within five standard deviations."""
    rows, length, density, epsilon = 4000, 256, 0.4, 0.3
    tensor = torch.arange(1.0, length + 1).repeat(rows)
    share = draw(tensor, (rows, length, 1), density, epsilon).view(rows, 16, 16).double().mean((0, 2))
    ranks = torch.arange(length).view(16, 16).double().mean(1)
    expected = density - epsilon + 2 * epsilon * ranks / (length - 1)
    assert ((share - expected).abs() < 5 * (expected * (1 - expected) / (16 * rows)).sqrt()).all()


def test_without_epsilon_it_is_dropout_at_random(generator):
    tensor = torch.randn(5000, generator=generator)
    expected = kernels.keep_mask(KEY, 3, kernels.drop_threshold(0.25), 0, 5000)
    assert torch.equal(draw(tensor, (50, 100, 1), 0.75, 0.0, model=3), expected)


def test_arguments():
    tensor, mask = torch.ones(64), torch.zeros(2, dtype=torch.int32)
    good = {"models": [Ranked(0, 0.5, 0.1)], "rows": (4, 16, 1), "key": 1}
    for change, message in [
        ({"rows": (4, 15, 1)}, r"rows is \(4, 15, 1\); expected three sizes of 64 elements"),
        (
            {"models": [Ranked(0, 0.1, 0.1)]},
            r"models\[0\] has density 0\.1 and epsilon 0\.1; expected epsilon >= 0",
        ),
        ({"models": [Ranked(0, 0.9, 0.1)]}, r"models\[0\] has density 0\.9 and epsilon 0\.1; .*density \+ epsilon < 1"),
        ({"models": [Ranked(0, 0.5, -0.1)]}, r"models\[0\] has density 0\.5 and epsilon -0\.1; expected epsilon >= 0"),
        ({"models": [Ranked(0, float("nan"), 0.1)]}, r"models\[0\] has density nan"),
        ({"models": [Ranked(2**32, 0.5, 0.1)]}, r"models\[0\] has the number 4294967296; expected 32 bits"),
        ({"models": []}, "there are 1 masks and 0 models; expected 1, as tensors"),
        ({"offset": 8}, "offset is 8; expected the first element of a slice of 16 x 1"),
        ({"key": 2**64}, "key is 18446744073709551616; expected 64 bits"),
    ]:
        with pytest.raises(ValueError, match=message):
            rank_mask([mask], [tensor], None, **{**good, **change})
    with pytest.raises(ValueError, match=r"masks\[0\] is torch\.int32 \(2,\); expected contiguous int32 \(3,\)"):
        rank_mask([mask], [torch.ones(65)], None, **{**good, "rows": (5, 13, 1)})
    with pytest.raises(ValueError, match=r"base has shape \(3,\)"):
        rank_mask([mask], [tensor], torch.ones(3), **good)
    with pytest.raises(ValueError, match=r"masks\[0\] is on meta, tensors\[0\] is on cpu"):
        rank_mask([mask.to("meta")], [tensor], None, **good)
