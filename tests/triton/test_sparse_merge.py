"""The fused sparse merge in Triton: bit for bit the reference, for every rule, vote and divisor."""

from __future__ import annotations

import functools

import pytest
import torch
from keep_rules import COLUMNS, check_columns, keep_rules

from fastmerge import kernels
from fastmerge.kernels import Boundary
from fastmerge.kernels.sparse_merge import DIVIDES, VOTES

B, F, H = torch.bfloat16, torch.float32, torch.float16
# Far enough that an index needs 64 bits; the second is no multiple of 8.
OFFSETS = (0, 2**35 + 16384, 2**33 + 3)


def _check(device, same_bits, out_dtype, base, tensors, kinds, offset, vote="none", divide="none") -> None:
    values = {
        "factors": [0.9 - 0.7 * k for k in range(len(tensors))],
        "weights": [0.4 + k for k in range(len(tensors))],
        "keeps": keep_rules(kinds, base, tensors, offset),
        "vote": vote, "divide": divide, "scale": 0.7, "offset": offset,
    }  # fmt: skip
    expected = torch.full_like(base, torch.nan, dtype=out_dtype)
    kernels.sparse_merge(expected, base, tensors, **values, backend="reference")
    out = torch.full_like(expected, torch.nan, device=device)
    kernels.sparse_merge(out, base.to(device), [t.to(device) for t in tensors], **values, backend="triton")
    same_bits(out, expected)


@pytest.mark.parametrize("divide", DIVIDES)
@pytest.mark.parametrize("vote", VOTES)
def test_votes_and_divisors(device, make, same_bits, vote, divide):
    base, tensors = make(3001, [B, B, B, B])
    _check(device, same_bits, B, base, tensors, "tbr", 16384, vote, divide)


@pytest.mark.parametrize("kinds", ["a", "t", "b", "r", "s", "tt", "atbrs"])
def test_rules_and_sizes(device, sizes, make, same_bits, kinds):
    for numel in sizes:
        base, tensors = make(numel, [B] * (1 + len(kinds)))
        _check(device, same_bits, B, base, tensors, kinds, 0, "weighted", "weights")


@pytest.mark.parametrize("offset", OFFSETS)
def test_offsets(device, make, same_bits, offset):
    base, tensors = make(2500, [B, B, B, B])
    _check(device, same_bits, B, base, tensors, "bsr", offset, "sum", "count")


@pytest.mark.parametrize("dtypes", [[F, F, F], [H, H, H], [B, F, H], [F, B, B]], ids=str)
@pytest.mark.parametrize("out_dtype", [B, F, H], ids=str)
def test_dtypes(device, make, same_bits, dtypes, out_dtype):
    base, tensors = make(2051, dtypes)
    _check(device, same_bits, out_dtype, base, tensors, "tr", 8, "weighted", "weights")


@pytest.mark.parametrize(("shape", "columns"), COLUMNS, ids=str)
def test_columns_are_drawn_as_in_the_whole(device, make, shape, columns):
    base, tensors = make(shape[0] * shape[1], [B, B, B])
    run = functools.partial(kernels.sparse_merge, backend="triton")
    check_columns(shape, columns, base, tensors, run, device)


def test_sixteen_models(device, make, same_bits):
    base, tensors = make(2051, [B] * 17)
    _check(device, same_bits, B, base, tensors, "t" * 16, 0, "count", "count")


def test_more_models_than_registers(device, make, same_bits):
    base, tensors = make(515, [B] * 41)
    _check(device, same_bits, B, base, tensors, "r" * 40, 0, "sum", "count")


@pytest.mark.parametrize("cut", [1, 3, 1024, 2500])
def test_break_index_anywhere(device, same_bits, cut):
    """All magnitudes are equal: only the break index decides."""
    base = torch.zeros(2501, dtype=B)
    tensors = [torch.full_like(base, value) for value in (0.5, -0.5)]
    keeps = [kernels.keep_top(Boundary(0x3F000000, 100 + cut)), kernels.keep_all()]
    values = {"factors": [1.0, 0.5], "keeps": keeps, "offset": 100}
    expected, out = torch.empty_like(base), torch.empty_like(base, device=device)
    kernels.sparse_merge(expected, base, tensors, **values, backend="reference")
    kernels.sparse_merge(out, base.to(device), [t.to(device) for t in tensors], **values, backend="triton")
    same_bits(out, expected)
    assert (expected == 0.25).sum() == cut


def test_out_may_be_the_base(device, make, same_bits):
    base, tensors = make(2051, [B, B, B])
    values = {"factors": [1.0, 0.5], "keeps": [kernels.keep_all()] * 2, "vote": "sum"}
    expected = torch.empty_like(base)
    kernels.sparse_merge(expected, base, tensors, **values, backend="reference")
    out = base.to(device, copy=True)
    kernels.sparse_merge(out, out, [t.to(device) for t in tensors], **values, backend="triton")
    same_bits(out, expected)


@pytest.mark.parametrize("offset", [0, 40, 16384 + 3])
@pytest.mark.parametrize("operation", ["sparse_merge", "norm_partials"])
def test_stored_masks(device, make, same_bits, operation, offset):
    """Masks end with the last element; norms start on the grid."""
    offset = offset if operation == "sparse_merge" else 16384 * (offset > 0)
    base, tensors = make(2051, [B, B, F, B])
    first = offset // 32 * 32  # of a mask of the part alone
    words = torch.arange(kernels.mask_words(offset - first + 2051), dtype=torch.int32) * 0x6C078965
    results = []
    for there, backend in ((torch.device("cpu"), "reference"), (device, "triton")):
        masks = [kernels.keep_masked(some.to(there), first) for some in (words, ~words)]
        keeps = [masks[0], kernels.keep_all(), masks[1]]
        models, start = [t.to(there) for t in tensors], base.to(there)
        if operation == "sparse_merge":
            out = torch.full_like(start, torch.nan)
            factors = [0.9, 0.5, -0.3]
            kernels.sparse_merge(
                out, start, models, factors=factors, keeps=keeps, vote="weighted", offset=offset, backend=backend
            )  # fmt: skip
        else:
            out = torch.full((1, 6), torch.nan, dtype=torch.float64, device=there)
            kernels.norm_partials(out, models, start, keeps, offset=offset, backend=backend)
        results.append(out)
    same_bits(results[1], results[0])
