"""The weighted sum in CUDA: alignment, aliasing, edges, and no write outside of the output."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import same_bits

from fastmerge import kernels
from fastmerge.kernels import _cuda
from fastmerge.kernels.weighted_sum import AT_ONCE

B, F, H = torch.bfloat16, torch.float32, torch.float16


def _check(device, sources, out_dtype, begins, out_begin, numel) -> None:
    """Sum parts of ``sources`` that begin anywhere, into the middle of a buffer."""
    tensors = [s[begin : begin + numel] for s, begin in zip(sources, begins, strict=True)]
    weights = [0.7 - 0.3 * k for k in range(len(tensors))]
    expected = torch.empty(numel, dtype=out_dtype)
    kernels.weighted_sum(expected, tensors, weights, backend="reference")
    buffer = torch.full((numel + 64,), torch.nan, dtype=out_dtype, device=device)
    there = [s.to(device)[begin : begin + numel] for s, begin in zip(sources, begins, strict=True)]
    kernels.weighted_sum(buffer[out_begin : out_begin + numel], there, weights, backend="cuda")
    assert same_bits(buffer[out_begin : out_begin + numel].cpu(), expected)
    assert buffer[:out_begin].isnan().all() and buffer[out_begin + numel :].isnan().all()


@pytest.mark.parametrize("numel", [0, 1, 7, 8, 9, 63, 4096, 5003])
@pytest.mark.parametrize("dtypes", [[B, B], [F, F, F], [H], [H, B, F, B]], ids=str)
def test_any_alignment(device, generator, dtypes, numel):
    sources = [torch.randn(numel + 64, generator=generator).to(dtype) for dtype in dtypes]
    for out_dtype in (dtypes[0], F):
        for begins in ([0] * len(dtypes), [3] * len(dtypes), [(5 * k + 1) % 8 for k in range(len(dtypes))]):
            for out_begin in {0, begins[0], 5}:
                _check(device, sources, out_dtype, begins, out_begin, numel)


@pytest.mark.parametrize("count", [4, 5, 16, 64])
def test_many_tensors(device, generator, count):
    _check(device, [torch.randn(3001, generator=generator).to(B) for _ in range(count)], B, [0] * count, 0, 2900)


@pytest.mark.parametrize("count", [65, 128, 200])
def test_more_tensors_than_parameters(device, generator, count):
    assert _cuda.extension().max_tensors == AT_ONCE < count
    _check(device, [torch.randn(400, generator=generator).to(B) for _ in range(count)], B, [0] * count, 0, 301)
    # Among jobs of few, and into a tensor that is an input.
    tensors = [torch.randn(77, generator=generator) for _ in range(count)]
    weights = torch.randn(count, generator=generator).tolist()
    expected = torch.empty(2, 77)
    for out, few in zip(expected, (count, 2), strict=True):
        kernels.weighted_sum(out, tensors[:few], weights[:few], backend="reference")
    there = [tensor.to(device, copy=True) for tensor in tensors]
    pair = torch.empty(77, device=device)
    jobs = [kernels.SumJob(there[-1], there, weights), kernels.SumJob(pair, there[:2], weights[:2])]
    kernels.weighted_sum_many(jobs, backend="cuda")
    assert same_bits(there[-1].cpu(), expected[0]) and same_bits(pair.cpu(), expected[1])


def test_other_operations_say_that_there_are_too_many(device):
    base, tensors = torch.zeros(8, device=device), [torch.ones(8, device=device)] * 65
    with pytest.raises(ValueError, match="the cuda backend takes at most 64 tensors, got 65; pin another backend"):
        kernels.sparse_merge(base, base, tensors, factors=[1.0] * 65, keeps=[kernels.keep_all()] * 65, backend="cuda")


@pytest.mark.parametrize("dtype", [B, H], ids=str)
def test_every_pattern_passes_unchanged(device, dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    out = torch.empty_like(every, device=device)
    kernels.weighted_sum(out, [every.to(device)], [1.0], backend="cuda")
    assert same_bits(out.cpu(), every)


@pytest.mark.parametrize("dtype", [B, H], ids=str)
def test_rounds_to_nearest_even(device, generator, dtype):
    """Random float32 patterns, and the ties between all neighbours of a 16-bit dtype with what lies beside them."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).float().view(torch.int32)
    steps = torch.tensor([0, 0x7FFF, 0x8000, 0x8001, 0xFFF, 0x1000, 0x1001])
    near = (every[:, None] + steps).flatten().to(torch.int32)
    patterns = torch.randint(-(2**31), 2**31, (20_000,), generator=generator, dtype=torch.int64).to(torch.int32)
    values = torch.cat([near, patterns]).view(F)
    out = torch.empty(values.numel(), dtype=dtype, device=device)
    kernels.weighted_sum(out, [values.to(device)], [1.0], backend="cuda")
    assert same_bits(out.cpu(), values.to(dtype))


@pytest.mark.parametrize("numel", [3001, 70000])
def test_out_may_be_an_input(device, generator, numel):
    tensors = [torch.randn(numel, generator=generator).to(B) for _ in range(6)]
    weights = [0.5, 0.25, -1.0, 2.0, 0.1, 0.3]
    expected = torch.empty_like(tensors[0])
    kernels.weighted_sum(expected, tensors, weights, backend="reference")
    there = [t.to(device, copy=True) for t in tensors]
    kernels.weighted_sum(there[5], there, weights, backend="cuda")
    assert same_bits(there[5].cpu(), expected)
