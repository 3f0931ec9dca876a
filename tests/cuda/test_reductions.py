"""Gram matrices, norms and low-rank updates in CUDA: the bits of the reference."""

from __future__ import annotations

from contextlib import nullcontext

import cuda_emulation
import pytest
import torch
from kernel_cases import same_bits
from torch import Tensor

from fastmerge import kernels
from fastmerge.kernels import GRID, Boundary, _cuda

B, F, H = torch.bfloat16, torch.float32, torch.float16
NUMELS = (0, 1, 7 * 129, GRID + 300, 5 * GRID)


def _make(generator, numel: int, dtypes: list[torch.dtype], begin: int = 0) -> list[Tensor]:
    """Tensors that begin ``begin`` elements after an aligned address."""
    values = 0.02 * torch.randn(numel + begin, generator=generator)
    noise = [5e-4 * torch.randn(numel + begin, generator=generator) for _ in dtypes]
    return [(values + n).to(dtype)[begin:] for n, dtype in zip(noise, dtypes, strict=True)]


def _check_gram(device: torch.device, base: Tensor | None, tensors: list[Tensor]) -> None:
    shape = (-(-tensors[0].numel() // GRID), len(kernels.pairs(len(tensors))))
    expected = torch.full(shape, torch.nan, dtype=torch.float64)
    out = torch.full_like(expected, torch.nan, device=device)
    kernels.gram_partials(expected, tensors, base, backend="reference")
    there = None if base is None else base.to(device)
    kernels.gram_partials(out, [t.to(device) for t in tensors], there, backend="cuda")
    assert same_bits(out.cpu(), expected)


@pytest.mark.parametrize("based", [True, False])
@pytest.mark.parametrize(("dtypes", "begin"), [([B] * 2, 3), ([B, F, H, B], 0), ([F, B, H, B, F, B, B], 3)], ids=str)
def test_gram_of_any(device, generator, dtypes, begin, based):
    for numel in NUMELS:
        base, *tensors = _make(generator, numel, [B, *dtypes], begin)
        _check_gram(device, base if based else None, tensors)


# All pairs of a lane in one thread, from 13 on in two. With 12 and 13 tensors a block takes several chunks.
@pytest.mark.parametrize("based", [True, False])
@pytest.mark.parametrize(
    ("dtype", "count"), [(B, 1), (H, 3), (F, 4), (B, 7), (F, 9), (B, 12), (H, 13), (F, 16)], ids=str
)
def test_gram(device, generator, dtype, count, based):
    for numel in (0, 1, 7 * 129, 5 * GRID if count in (12, 13) else GRID + 300):
        base, *tensors = _make(generator, numel, [dtype] * (count + 1))
        _check_gram(device, base if based else None, tensors)


def test_gram_of_what_is_not_finite(device, generator):
    base, *tensors = _make(generator, 1000, [B] * 6)
    tensors[1][5], tensors[2][999], tensors[4][0] = torch.inf, torch.nan, -torch.inf
    _check_gram(device, base, tensors)


@pytest.mark.parametrize("kilobytes", [227, 99])
@pytest.mark.parametrize("count", [11, 20])
def test_gram_of_many(device, generator, count, kilobytes):
    """More tensors than a kernel takes, of which there are fewer where a block has less shared memory."""
    with cuda_emulation.shared_memory(_cuda.extension(), kilobytes << 10) if device.type == "cpu" else nullcontext():
        _check_gram(device, None, _make(generator, 300, [B] * count))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("based", [True, False])
@pytest.mark.parametrize("dtypes", [[B] * 5, [F, H, B, F, F]], ids=str)
def test_norms(device, generator, dtypes, based, power):
    offset = 2**34
    for numel in NUMELS:
        base, *tensors = _make(generator, numel, [B, *dtypes])
        if numel > 100:
            tensors[1][5], tensors[2][numel - 1] = torch.inf, torch.nan
        keeps = [
            kernels.keep_all(),
            kernels.keep_top(Boundary(0x3A000000, offset + 400)),
            kernels.keep_band(Boundary(0x39000000, offset + 10), Boundary(0x3A800000, offset + 100)),
            kernels.keep_random(kernels.tensor_key(1, "x"), 3, 0x12345678),
            kernels.keep_random(kernels.tensor_key(1, "x"), 4, 2**32),
        ]
        shape = (-(-numel // GRID), 2 * len(tensors))
        expected = torch.full(shape, torch.nan, dtype=torch.float64)
        out = torch.full_like(expected, -1.0, device=device)
        rest = {"power": power, "offset": offset}
        kernels.norm_partials(expected, tensors, base if based else None, keeps, **rest, backend="reference")
        there = [t.to(device) for t in tensors]
        kernels.norm_partials(out, there, base.to(device) if based else None, keeps, **rest, backend="cuda")
        assert same_bits(out.cpu(), expected)


@pytest.mark.parametrize("based", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dtypes", [[B] * 5, [F] * 3], ids=str)
def test_norms_of_models_together(device, generator, dtypes, masked, based):
    for numel in (1, 7 * 129, GRID + 300):
        base, *tensors = _make(generator, numel, [dtypes[0], *dtypes])
        if numel > GRID:  # which is found while a chunk is added up, and again where it is dropped
            tensors[1][5], tensors[2][numel - 1] = torch.inf, torch.nan
        shape = (-(-numel // GRID), 2 * len(tensors))
        words = (len(dtypes), kernels.mask_words(numel))
        masks = torch.randint(-(2**31), 2**31, words, generator=generator).to(torch.int32)
        found = []
        for at, backend in (("cpu", "reference"), (device, "cuda")):
            if masked:
                keeps = [kernels.keep_masked(mask) for mask in masks.to(at)]
            else:
                key = kernels.tensor_key(1, "x")
                keeps = [kernels.keep_random(key, model, 0x12345678 << model) for model in range(len(dtypes))]
            found.append(torch.full(shape, -1.0, dtype=torch.float64, device=at))
            there = None if not based else base.to(at)
            kernels.norm_partials(found[-1], [t.to(at) for t in tensors], there, keeps, backend=backend)
        assert same_bits(found[1].cpu(), found[0])


def test_norms_of_masks(device, generator):
    numel = GRID + 333
    base, tensor = _make(generator, numel, [B, B])
    mask = torch.randint(-(2**31), 2**31, (kernels.mask_words(GRID + numel),), generator=generator).to(torch.int32)
    partials = [torch.full((2, 2), torch.nan, dtype=torch.float64, device=d) for d in ("cpu", device)]
    for out, backend in zip(partials, ("reference", "cuda"), strict=True):
        there = [t.to(out.device) for t in (tensor, base, mask)]
        kernels.norm_partials(
            out, there[:1], there[1], [kernels.keep_masked(there[2])], offset=GRID, backend=backend
        )  # fmt: skip
    assert same_bits(partials[1].cpu(), partials[0])


@pytest.mark.parametrize("dtype", [B, F, H], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 129, 3), (9, 1032, 40), (10, 1100, 33), (0, 4, 2)], ids=str)
def test_low_rank(device, generator, shape, dtype):
    rows, columns, rank = shape
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    up, down = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
    up[:, 0] *= -0.0
    there = [t.to(device) for t in (weight, up, down)]
    for out_dtype in (B, F, H):
        expected = torch.full((rows, columns), torch.nan, dtype=out_dtype)
        buffer = torch.full((rows + 2, columns), torch.nan, dtype=out_dtype, device=device)
        kernels.low_rank_update(expected, weight, up, down, 0.3, backend="reference")
        kernels.low_rank_update(buffer[1:-1], *there, 0.3, backend="cuda")
        assert same_bits(buffer[1:-1].cpu(), expected)
        assert buffer[0].isnan().all() and buffer[-1].isnan().all()
