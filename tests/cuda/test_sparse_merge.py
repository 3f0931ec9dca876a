"""The fused sparse merge in CUDA: bit for bit the reference, for every rule, vote, divisor and alignment."""

from __future__ import annotations

import functools

import pytest
import torch
from keep_rules import COLUMNS, check_columns, keep_rules
from kernel_cases import same_bits
from torch import Tensor

from fastmerge import kernels
from fastmerge.kernels import Boundary
from fastmerge.kernels.sparse_merge import DIVIDES, VOTES

B, F, H = torch.bfloat16, torch.float32, torch.float16
# Far enough that an index needs 64 bits; the last is no multiple of 8.
OFFSETS = (0, 2**35 + 16384, 2**33 + 3)
PADDING = 48


@pytest.fixture
def make(generator):
    """A function that returns a base and its fine-tuned tensors, with NaN, infinities and equal magnitudes."""

    def tensors(numel: int, dtypes: list[torch.dtype]) -> list[Tensor]:
        base = 0.02 * torch.randn(numel, generator=generator)
        result = [base.to(dtypes[0])]
        for dtype in dtypes[1:]:
            noise, draw = 5e-4 * torch.randn(numel, generator=generator), torch.rand(numel, generator=generator)
            model = torch.where(draw < 0.2, base, base + noise)
            model = torch.where(draw > 0.996, torch.nan, torch.where(draw > 0.992, torch.inf, model))
            result.append(model.to(dtype))
        return result

    return tensors


def _check(device, out_dtype, base, tensors, kinds, offset=0, vote="none", divide="none", begins=None) -> None:
    """Merge into the middle of a buffer; ``begins`` moves the base, the tensors and the output off their alignment."""
    begins = begins or [0] * (len(tensors) + 2)
    values = {
        "factors": [0.9 - 0.7 * k for k in range(len(tensors))],
        "weights": [0.4 + k for k in range(len(tensors))],
        "vote": vote, "divide": divide, "scale": 0.7, "offset": offset,
    }  # fmt: skip
    keeps = keep_rules(kinds, base, tensors, offset)
    expected = torch.full_like(base, torch.nan, dtype=out_dtype)
    kernels.sparse_merge(expected, base, tensors, **values, keeps=keeps, backend="reference")
    buffer = torch.full((base.numel() + PADDING,), torch.nan, dtype=out_dtype, device=device)
    out = buffer[begins[0] : begins[0] + base.numel()]
    there = []
    for begin, tensor in zip(begins[1:], [base, *tensors], strict=True):
        padded = torch.full((tensor.numel() + PADDING,), torch.nan, dtype=tensor.dtype, device=device)
        padded[begin : begin + tensor.numel()] = tensor.to(device)
        there.append(padded[begin : begin + tensor.numel()])
    keeps = [keep._replace(mask=None if keep.mask is None else keep.mask.to(device)) for keep in keeps]
    kernels.sparse_merge(out, there[0], there[1:], **values, keeps=keeps, backend="cuda")
    assert same_bits(out.cpu(), expected)
    assert buffer[: begins[0]].isnan().all() and buffer[begins[0] + base.numel() :].isnan().all()


@pytest.mark.parametrize("divide", DIVIDES)
@pytest.mark.parametrize("vote", VOTES)
@pytest.mark.parametrize("dtypes", [[B] * 4, [B] * 7, [B, F, H, B]], ids=str)
def test_votes_and_divisors(device, make, dtypes, vote, divide):
    base, *tensors = make(3001, dtypes)
    _check(device, B, base, tensors, "tbrsma"[: len(tensors)], 16384, vote, divide)


@pytest.mark.parametrize("kinds", ["a", "t", "b", "r", "s", "d", "m", "tt", "atbr", "msrd", "atbrsdm"])
@pytest.mark.parametrize("numel", [1, 8, 1023, 4096, 5001])
def test_rules_and_sizes(device, make, kinds, numel):
    base, *tensors = make(numel, [B] * (1 + len(kinds)))
    _check(device, B, base, tensors, kinds, 0, "weighted", "weights")


@pytest.mark.parametrize("kinds", ["bsr", "ttt"])
@pytest.mark.parametrize("offset", OFFSETS)
def test_offsets(device, make, kinds, offset):
    base, *tensors = make(2500, [B] * 4)
    _check(device, B, base, tensors, kinds, offset, "sum", "count")


@pytest.mark.parametrize("offset", [0, 8, 24, 3, 61])
@pytest.mark.parametrize("numel", [1, 30, 515])
def test_masks_at_any_bit(device, make, offset, numel):
    base, *tensors = make(numel, [B, B, F])
    _check(device, F, base, tensors, "mm", offset)
    base, *tensors = make(numel, [B, B])
    _check(device, B, base, tensors, "m", offset)


@pytest.mark.parametrize("offset", [32, 96 + 8, 2**33 + 45])
def test_masks_that_begin_with_a_part(device, generator, offset):
    base, tensor = torch.zeros(515), torch.ones(515)
    words = torch.randint(-(2**31), 2**31, (18,), generator=generator).int()
    outs = []
    for where, backend in (("cpu", "reference"), (device, "cuda")):
        rule = kernels.keep_masked(words.to(where), offset - offset % 32)
        outs.append(torch.full_like(base, torch.nan, device=where))
        kernels.sparse_merge(
            outs[-1], base.to(where), [tensor.to(where)], factors=[1.0], keeps=[rule], offset=offset, backend=backend
        )  # fmt: skip
    assert torch.equal(outs[1].cpu(), outs[0])


@pytest.mark.parametrize("dtypes", [[F, F, F], [H, H, H], [B, F, H], [F, B, B]], ids=str)
@pytest.mark.parametrize("out_dtype", [B, F, H], ids=str)
def test_dtypes(device, make, dtypes, out_dtype):
    base, *tensors = make(2051, dtypes)
    _check(device, out_dtype, base, tensors, "tr", 8, "weighted", "weights")


@pytest.mark.parametrize("begins", [[3] * 5, [8] * 5, [5, 5, 5, 5, 4], [1, 2, 3, 4, 5]], ids=str)
@pytest.mark.parametrize("numel", [2, 13, 2051])
def test_any_alignment(device, make, begins, numel):
    for dtypes in ([B] * 4, [B, F, H, B]):
        base, *tensors = make(numel, dtypes)
        for kinds, offset in (("tbs", 16384), ("rms", 11)):
            _check(device, B, base, tensors, kinds, offset, "count", "weights", begins)


@pytest.mark.parametrize("vote", VOTES)
@pytest.mark.parametrize(("shape", "columns"), COLUMNS, ids=str)
def test_columns_are_drawn_as_in_the_whole(device, make, shape, columns, vote):
    for dtypes in ([B] * 4, [F, B, H]):
        base, *tensors = make(shape[0] * shape[1], dtypes)
        run = functools.partial(kernels.sparse_merge, backend="cuda")
        check_columns(shape, columns, base, tensors, run, device, vote=vote)


def test_strided_parts_share_a_launch_with_others(device, make):
    """In one table, of one dtype: a part of columns, and a tensor that is whole."""
    base, *tensors = make(800, [B, B, B])
    rules = keep_rules("rs", base, tensors, 0)
    striped = [kernels.keep_on_rows(rule, 3, 20, 33) for rule in rules]
    outs = []
    for where, backend in (("cpu", "reference"), (device, "cuda")):
        there = [tensor.to(where) for tensor in (base, *tensors)]
        both = [torch.full_like(there[0], torch.nan) for _ in range(3)]
        kernels.sparse_merge_many(
            [
                kernels.MergeJob(out, there[0], there[1:], [0.5, -0.3], keeps)
                for out, keeps in zip(both, (rules, striped, rules), strict=True)
            ],
            backend=backend,
        )
        outs.append([out.cpu() for out in both])
    assert all(same_bits(found, expected) for expected, found in zip(*outs, strict=True))
    assert not torch.equal(outs[0][0], outs[0][1])


@pytest.mark.parametrize("count", [5, 16, 17, 33, 64])
def test_many_models(device, make, count):
    base, *tensors = make(2051, [B] * (count + 1))
    _check(device, B, base, tensors, "r" * count, 0, "sum", "count")


@pytest.mark.parametrize("cut", [1, 3, 8, 1024, 2500])
def test_break_index_anywhere(device, cut):
    """All magnitudes are equal: only the break index decides."""
    base = torch.zeros(2501, dtype=B)
    tensors = [torch.full_like(base, value) for value in (0.5, -0.5)]
    keeps = [kernels.keep_top(Boundary(0x3F000000, 104 + cut)), kernels.keep_all()]
    values = {"factors": [1.0, 0.5], "keeps": keeps, "offset": 104}
    expected, out = torch.empty_like(base), torch.empty_like(base, device=device)
    kernels.sparse_merge(expected, base, tensors, **values, backend="reference")
    kernels.sparse_merge(out, base.to(device), [t.to(device) for t in tensors], **values, backend="cuda")
    assert same_bits(out.cpu(), expected)
    assert (expected == 0.25).sum() == cut


@pytest.mark.parametrize("count", [2, 6])
def test_out_may_be_an_input(device, make, count):
    base, *tensors = make(2051, [B] * (count + 1))
    values = {"factors": [0.5] * count, "keeps": [kernels.keep_all()] * count, "vote": "sum"}
    expected = torch.empty_like(base)
    kernels.sparse_merge(expected, base, tensors, **values, backend="reference")
    for position in (0, count):
        there = [t.to(device, copy=True) for t in (base, *tensors)]
        kernels.sparse_merge(there[position], there[0], there[1:], **values, backend="cuda")
        assert same_bits(there[position].cpu(), expected)


@pytest.mark.parametrize("threshold", [0, 1, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x80000000])
def test_thresholds_at_the_ends(device, generator, threshold):
    """Zeros, the largest number, infinities and NaNs at the boundary, on both sides of the break index."""
    special = torch.tensor([0.0, -0.0, 1e-45, 3.4028234663852886e38, torch.inf, -torch.inf, torch.nan, 1.0])
    tensor = special[torch.randint(0, 8, (333,), generator=generator)]
    base = torch.zeros_like(tensor)
    for break_index in (0, 100, kernels.ALL_EQUAL):
        boundary = Boundary(threshold, break_index)
        for keep in (kernels.keep_top(boundary), kernels.keep_band(kernels.EVERYTHING, boundary)):
            # bfloat16 takes the other kernel.
            for dtype in (F, B):
                expected = torch.full((333,), torch.nan, dtype=dtype)
                out = torch.full_like(expected, torch.nan, device=device)
                arrays = [base.to(dtype), tensor.to(dtype)]
                for where, backend in ((expected, "reference"), (out, "cuda")):
                    there = [a.to(where.device) for a in arrays]
                    kernels.sparse_merge(where, there[0], there[1:], factors=[0.5], keeps=[keep], backend=backend)
                assert same_bits(out.cpu(), expected)
