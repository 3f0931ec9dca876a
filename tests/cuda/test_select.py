"""Selection in CUDA: exactly the boundaries of the reference: ties, special values, misled samples, many tensors."""

from __future__ import annotations

import pytest
import torch

from fastmerge import kernels
from fastmerge.kernels import SelectJob
from fastmerge.kernels._cuda import select as hooks

B, F, H = torch.bfloat16, torch.float32, torch.float16
SAMPLE = 16384  # kSample of csrc/cuda/select.h: above it, brackets are sampled
LARGE = 3 * SAMPLE + 77


def _check(device, tensors, base, ranks) -> None:
    expected = kernels.select_boundaries(tensors, base, ranks, backend="reference")
    there = None if base is None else base.to(device)
    found = kernels.select_boundaries([t.to(device) for t in tensors], there, ranks, backend="cuda")
    assert found == expected


def _ranks(numel: int) -> list[int]:
    return sorted({1, numel // 10, numel // 2, numel - numel // 10, numel - 1} & set(range(1, numel)))


@pytest.mark.parametrize("numel", [2, 3, 511, 512, 513, SAMPLE - 1, SAMPLE, SAMPLE + 1, 40 * 1024, LARGE])
def test_sizes(device, generator, numel):
    base = torch.randn(numel, generator=generator)
    _check(device, [base + torch.randn(numel, generator=generator)], base, [_ranks(numel)])


@pytest.mark.parametrize("dtypes", [[B], [H], [F], [F, B, H]], ids=str)
@pytest.mark.parametrize("based", [None, B, F], ids=str)
def test_dtypes(device, generator, dtypes, based):
    values = 0.02 * torch.randn(LARGE, generator=generator)
    tensors = [(values + 2e-3 * torch.randn(LARGE, generator=generator)).to(dtype) for dtype in dtypes]
    base = None if based is None else values.to(based)
    _check(device, tensors, base, [[LARGE // 3, LARGE // 2]] * len(tensors))


# The share of elements that equal the threshold at density 0.5: none, a few, 15 %, 78 % and all.
@pytest.mark.parametrize("deviation", [None, 2e-3, 1e-4, 2e-5, 0.0])
def test_ties(device, generator, deviation):
    base = 0.02 * torch.randn(LARGE, generator=generator)
    if deviation is None:
        tensor, base = base + torch.randn(LARGE, generator=generator), None
    else:
        base = base.to(B)
        tensor = (base.float() + deviation * torch.randn(LARGE, generator=generator)).to(B)
    _check(device, [tensor], base, [_ranks(LARGE)])


def _mostly_nan(generator):
    values = torch.randn(LARGE, generator=generator)
    values[torch.rand(LARGE, generator=generator) < 0.7] = torch.nan
    return values


def _special_values(generator):
    bits = torch.randint(-(2**31), 2**31 - 1, (LARGE,), generator=generator, dtype=torch.int64).to(torch.int32)
    return bits.view(F)


def _infinite(generator):
    values = torch.randn(LARGE, generator=generator)
    values[::3] = -torch.inf
    return values


def _sorted(generator):
    return torch.randn(LARGE, generator=generator).sort().values


def _few_values(generator):
    """More values around the median than the ends of a bracket."""
    return torch.randint(1000, 1030, (LARGE,), generator=generator).float()


def _neighbours_in_the_last_bit(generator):
    return (torch.randint(0, 4, (LARGE,), generator=generator) + 0x3F800000).to(torch.int32).view(F)


DATA = [_mostly_nan, _special_values, _infinite, _sorted, _few_values, _neighbours_in_the_last_bit]


@pytest.mark.parametrize("data", DATA)
def test_adversarial_data(device, generator, data):
    _check(device, [data(generator)], None, [_ranks(LARGE)])


@pytest.mark.parametrize("equal", [0.0, -1.5, torch.nan, torch.inf])
@pytest.mark.parametrize("numel", [1000, LARGE])
def test_all_equal(device, equal, numel):
    _check(device, [torch.full((numel,), equal)], None, [[1, numel // 2, numel - 1]])


def test_ranks_at_the_edges_of_ties(device, generator):
    """The last element of a magnitude, the one before and the one after, at either end of a bracket."""
    tensor = torch.randint(1, 4, (LARGE,), generator=generator).float()
    upper, both = int((tensor == 3).sum()), int((tensor >= 2).sum())
    _check(device, [tensor], None, [[edge + step for edge in (upper, both) for step in (-1, 0, 1)]])


@pytest.mark.parametrize("special", ["ties", "distinct"])
def test_several_blocks_share_a_tensor(device, generator, special):
    """The last of them finds the break index in what the others counted."""
    numel = 300_001
    tensor = torch.randn(numel, generator=generator)
    if special == "ties":
        tensor = tensor.sign() * torch.randint(1, 3, (numel,), generator=generator)
    _check(device, [tensor], None, [[1000, numel // 2 + 999]])


@pytest.mark.parametrize("dtype", [B, H, F])
def test_warps_read_ahead_over_brackets_of_both_kinds(device, generator, dtype):
    """More chunks than warps, the last one cut short; brackets of one magnitude beside others."""
    numel = 160 * 1024 + 77
    base = 0.02 * torch.randn(numel, generator=generator)
    tensors = [
        (base + deviation * torch.randn(numel, generator=generator)).to(dtype) for deviation in (2e-3, 0.0, 2e-5)
    ]
    _check(device, tensors, base.to(dtype), [[numel // 2]] * 3)


def test_one_outlier_that_no_sample_sees(device, generator):
    tensor = 1e-3 * torch.randn(LARGE, generator=generator)
    tensor[12345] = 5.0
    _check(device, [tensor], None, [[1, 2]])


def test_parts_of_tensors(device, generator):
    """Addresses that no vector can begin at."""
    source = torch.randn(LARGE + 8, generator=generator)
    for dtype, begin in ((F, 1), (B, 3)):
        whole = source.to(dtype)
        expected = kernels.select_boundaries([whole[begin:-8]], None, [[LARGE // 3]], backend="reference")
        assert kernels.select_boundaries([whole.to(device)[begin:-8]], None, [[LARGE // 3]], backend="cuda") == expected


def test_a_missed_bracket_is_found_by_histograms(device, generator, monkeypatch):
    """Brackets of no width lie beside most ranks."""
    monkeypatch.setattr(hooks, "DEVIATIONS", -0.25)
    hooks.misled.clear()
    base = 0.02 * torch.randn(LARGE, generator=generator)
    tensor = (base + 1e-2 * torch.randn(LARGE, generator=generator)).to(B)
    _check(device, [tensor], base.to(B), [list(range(1000, LARGE, 7001))])
    assert hooks.misled["missed"] > 0


@pytest.mark.slow
def test_runs_mislead_the_sample(device, generator, monkeypatch):
    """Equal neighbours: those that are sampled together say nothing new, so the sample is too sure.

    With half of the margin four of five are misled, with all of it one of five.
    """
    monkeypatch.setattr(hooks, "DEVIATIONS", hooks.DEVIATIONS / 2)
    hooks.misled.clear()
    ranks = list(range(5_000, 195_000, 10_007))
    for _ in range(20):
        _check(device, [torch.randn(12_500, generator=generator).repeat_interleave(16)], None, [ranks])
        if hooks.misled["missed"]:
            return
    pytest.fail("no sample was misled")


def test_an_overflow_is_found_by_histograms(device, generator, monkeypatch):
    monkeypatch.setattr(hooks, "SPARE", 0.0)
    hooks.misled.clear()
    _check(device, [torch.randn(LARGE, generator=generator)], None, [[LARGE // 2]])
    assert hooks.misled == {"overflowed": 1}


def test_good_samples_do_not_mislead(device, generator):
    hooks.misled.clear()
    base = (0.02 * torch.randn(LARGE, generator=generator)).to(B)
    tensors = [(base.float() + s * torch.randn(LARGE, generator=generator)).to(B) for s in (2e-5, 1e-4, 2e-3)]
    _check(device, tensors, base, [_ranks(LARGE)] * 3)
    assert not hooks.misled


@pytest.mark.parametrize("backend", ["cuda", "reference"])
def test_many_jobs(device, generator, monkeypatch, backend):
    """Small and large tensors, more boundaries than a table holds, several shares of the work space, edges of ranks."""
    monkeypatch.setattr(hooks, "WORKSPACE", 200_000)
    jobs, there = [], []
    for numel in (1, 5, 700, LARGE, 40, SAMPLE, LARGE - 9, 2 * SAMPLE):
        base = torch.randn(numel, generator=generator).to(H)
        tensors = [(base + 0.1 * torch.randn(numel, generator=generator)).to(dtype) for dtype in (H, F, H)]
        ranks = [[numel // 2], [0, numel], [numel, numel // 3, numel // 4, 0]]
        jobs.append(SelectJob(tensors, base, ranks))
        there.append(SelectJob([t.to(device) for t in tensors], base.to(device), ranks))
    expected = [kernels.select_boundaries(*job, backend="reference") for job in jobs]
    selection = kernels.start_selection(there, backend=backend)
    assert selection.result() == expected
    assert kernels.select_boundaries_many(there, backend=backend) == expected
    assert kernels.select_boundaries_many([], backend=backend) == []


def test_more_boundaries_than_a_table_holds(device, generator):
    _check(device, [torch.randn(LARGE, generator=generator)], None, [list(range(500, 45_000, 1200))])


def test_errors_name_the_job(device):
    tensor = torch.ones(3, device=device)
    jobs = [SelectJob([tensor], None, [[1]]), SelectJob([tensor], None, [[4]])]
    with pytest.raises(ValueError, match=r"jobs\[1\]: ranks\[0\] asks for 4 of 3 elements"):
        kernels.select_boundaries_many(jobs, backend="cuda")


@pytest.mark.parametrize("numel", [1, 4095, 2 * 16384 + 3])
@pytest.mark.parametrize("value", ["some", "nan", "none"])
def test_equal_counts(device, generator, numel, value):
    base = torch.randn(numel, generator=generator).to(B)
    tensors = [base.float() + torch.randint(-2, 3, (numel,), generator=generator), base.clone()]
    tensors[0][numel // 2] = torch.nan
    threshold = {"some": 0x40000000, "nan": 0x7F800001, "none": 0x12345678}[value]
    expected = torch.full((2, -(-numel // kernels.GRID)), -1)
    counts = expected.to(device, copy=True)
    kernels.equal_counts(expected, tensors, base, [threshold, 0], backend="reference")
    kernels.equal_counts(counts, [t.to(device) for t in tensors], base.to(device), [threshold, 0], backend="cuda")
    assert torch.equal(counts.cpu(), expected)


def test_equal_counts_of_more_chunks_than_blocks(device, generator):
    tensors = [torch.randint(0, 2, (3,), generator=generator).float() for _ in range(64)]
    expected = torch.stack([(tensor == 1).sum() for tensor in tensors])[:, None]
    counts = torch.full_like(expected, -1).to(device)
    kernels.equal_counts(counts, [t.to(device) for t in tensors], None, [0x3F800000] * 64, backend="cuda")
    assert torch.equal(counts.cpu(), expected)


@pytest.mark.parametrize("data", [*DATA, lambda generator: torch.zeros(LARGE)])
def test_histograms(device, generator, data):
    values = data(generator)
    tensors = [values, values.to(B)]
    first = torch.ones(2, kernels.HISTOGRAM_BINS[0], dtype=torch.int64)
    counts = first.to(device, copy=True)
    there = [t.to(device) for t in tensors]
    kernels.magnitude_histogram(first, tensors, None, 0, backend="reference")
    kernels.magnitude_histogram(counts, there, None, 0, backend="cuda")
    assert torch.equal(counts.cpu(), first)
    prefixes = first.argmax(1).tolist()
    second = torch.ones(2, kernels.HISTOGRAM_BINS[1], dtype=torch.int64)
    counts = second.to(device, copy=True)
    kernels.magnitude_histogram(second, tensors, None, 1, prefixes, backend="reference")
    kernels.magnitude_histogram(counts, there, None, 1, prefixes, backend="cuda")
    assert torch.equal(counts.cpu(), second)
