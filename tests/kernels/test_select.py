"""Exact selection: ties, adversarial inputs, and the bracket that makes it fast."""

import pytest
import torch
from kernel_cases import Variant, variants

from fastmerge import kernels
from fastmerge.kernels import ALL_EQUAL, EVERYTHING, NOTHING, select_boundaries
from fastmerge.kernels.keep import NAN_MAGNITUDE, keep_top, kept, magnitude_bits

native = pytest.importorskip("fastmerge._C")
LARGE = 300_000  # above the size from which a bracket is sampled


def normal(generator, numel=LARGE):
    return torch.randn(numel, generator=generator)


def few_values(generator):
    """Deltas of bfloat16 weights: most magnitudes occur thousands of times."""
    base = (0.02 * normal(generator)).bfloat16()
    return (base.float() + 2e-5 * normal(generator)).bfloat16().float() - base.float()


def three_values(generator):
    return torch.randint(1, 4, (LARGE,), generator=generator).float()


def many_atoms(generator):
    """Twenty values around the median: more than the bracket counts apart."""
    return torch.randint(1000, 1020, (LARGE,), generator=generator).float()


def sorted_values(generator):
    return normal(generator).abs().sort().values


def mostly_zero(generator):
    return normal(generator) * (torch.rand(LARGE, generator=generator) < 0.1)


def mostly_nan(generator):
    return torch.where(torch.rand(LARGE, generator=generator) < 0.7, float("nan"), normal(generator))


def outliers_at_one_place(generator):
    """A sample of places never sees the few large values that decide a small rank."""
    values = 1e-3 * normal(generator)
    values[4096:4200] = 100 + normal(generator, 104)
    return values


DATA = [normal, few_values, three_values, many_atoms, sorted_values, mostly_zero, mostly_nan, outliers_at_one_place]
RANKS = [1, 50, 104, LARGE // 10, LARGE // 2, int(0.9 * LARGE), LARGE - 1]


@pytest.mark.parametrize("data", DATA)
def test_adversarial_data(data, generator):
    tensor = data(generator)
    expected = select_boundaries([tensor], None, [RANKS], backend="reference")
    for variant in variants():
        with variant.active():
            assert select_boundaries([tensor], None, [RANKS]) == expected, variant.label


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_most_magnitudes_occur_often(generator, dtype):
    """Fine-tunes of 16-bit weights: where the bracket is one magnitude, its elements are counted and not listed."""
    base = (0.02 * normal(generator)).to(dtype)
    tensors = [(base.float() + scale * normal(generator)).to(dtype) for scale in (1e-5, 1e-4)]
    expected = select_boundaries(tensors, base, [RANKS] * 2, backend="reference")
    for variant in variants():
        with variant.active():
            assert select_boundaries(tensors, base, [RANKS] * 2) == expected, variant.label


@pytest.mark.parametrize("data", [normal, few_values, sorted_values])
def test_exactly_rank_elements_are_kept(data, generator):
    tensor = data(generator)
    ranks = [0, *RANKS, LARGE]
    for rank, boundary in zip(ranks, select_boundaries([tensor], None, [ranks])[0], strict=True):
        assert int(kept(tensor, keep_top(boundary), 0).sum()) == rank


def test_the_sample_rarely_misleads(generator):
    before = native.select_fallbacks()
    for data in (normal, few_values, mostly_zero):
        tensor = data(generator)
        for rank in (LARGE // 10, LARGE // 3, LARGE // 2):
            select_boundaries([tensor], None, [[rank]], backend="cpu")
    assert native.select_fallbacks() == before


def test_histograms_find_what_the_sample_missed(generator):
    """Runs of equal values: the neighbours that are sampled together say nothing new, so the sample is too sure."""
    ranks = list(range(100_000, 1_000_000, 30_011))
    before = native.select_fallbacks()
    # About every second draw misleads the sample.
    for _ in range(40):
        tensor = torch.randn(2000, generator=generator).repeat_interleave(500)
        expected = select_boundaries([tensor], None, [ranks], backend="reference")
        assert select_boundaries([tensor], None, [ranks], backend="cpu") == expected
        if native.select_fallbacks() > before:
            return
    pytest.fail("no sample was misled")


def test_the_first_of_equals_are_kept():
    tensor = torch.tensor([1.0, -2.0, 2.0, 2.0, 3.0, -2.0])
    [[two, three, five]] = select_boundaries([tensor], None, [[2, 3, 5]])
    threshold = int(magnitude_bits(torch.tensor([2.0]))[0])
    assert (two, three, five) == ((threshold, 2), (threshold, 3), (threshold, ALL_EQUAL))
    assert select_boundaries([tensor], None, [[0, 6]]) == [[NOTHING, EVERYTHING]]


def test_nan_ranks_above_infinity_whatever_its_payload():
    payloads = torch.tensor([0x7FC00000, 0x7F800001, -1, 0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    tensor = torch.cat([torch.tensor([1.0, float("inf")]), payloads])
    for variant in [Variant("reference"), *variants()]:
        with variant.active():
            assert select_boundaries([tensor], None, [[2, 4, 5]]) == [
                [(NAN_MAGNITUDE, 4), (NAN_MAGNITUDE, ALL_EQUAL), (0x7F800000, ALL_EQUAL)]
            ], variant.label


def test_ranks_out_of_range():
    with pytest.raises(ValueError, match=r"ranks\[0\] asks for 4 of 3 elements; expected 0 <= rank <= 3"):
        select_boundaries([torch.ones(3)], None, [[4]])
    with pytest.raises(ValueError, match="ranks has 1 entries; expected 2, one list per tensor"):
        select_boundaries([torch.ones(3)] * 2, None, [[1]])


def test_histogram_arguments():
    counts = torch.zeros(1, kernels.HISTOGRAM_BINS[0], dtype=torch.int64)
    with pytest.raises(ValueError, match="level is 1 with 0 prefixes; expected 0 with none, or 1 with 1"):
        kernels.magnitude_histogram(counts, [torch.ones(3)], None, 1)
    with pytest.raises(
        ValueError, match=r"counts is torch\.int64 \(1, 32768\); expected contiguous int64 \(2, 32768\)"
    ):
        kernels.magnitude_histogram(counts, [torch.ones(3)] * 2, None, 0)
