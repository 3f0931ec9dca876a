"""Masks by rank in CUDA: rows in shared memory and in the workspace, of any magnitudes, along any dimension.

97 rows of 256 are one more than the emulator runs at a time.
"""

from __future__ import annotations

import pytest
import torch

from fastmerge import kernels

B, F, H = torch.bfloat16, torch.float32, torch.float16


def _mask(tensor, rows, device, backend, offset=0):
    mask = torch.full((kernels.mask_words(offset % 32 + tensor.numel()),), -7, dtype=torch.int32, device=device)
    # Almost every probability occurs, so that almost every rank matters.
    kernels.rank_mask(
        [mask], [tensor.to(device)], None, [kernels.Ranked(1, 0.5, 0.4999)], rows=rows, key=2**63 + 5, offset=offset,
        backend=backend,
    )  # fmt: skip
    return mask.cpu()


@pytest.mark.parametrize("kind", ["distinct", "equal", "unchanged", "two values", "special"])
@pytest.mark.parametrize(
    "rows", [(40, 7, 1), (9, 127, 1), (97, 256, 1), (3, 4096, 1), (4, 4097, 1), (1, 9001, 1), (2, 300, 5), (1, 4500, 3)]
)
def test_rows(device, generator, rows, kind):
    normal = torch.randn(rows, generator=generator)
    tensor = {
        "distinct": normal,
        "equal": torch.ones(rows),
        "unchanged": torch.where(normal > 0.3, normal, 0.0),
        "two values": torch.where(normal > 0.3, 1.0, 1.0 + 2**-23),
        "special": torch.where(normal > 1, torch.nan, torch.where(normal < -1, torch.inf, normal)),
    }[kind].flatten()
    assert torch.equal(_mask(tensor, rows, device, "cuda"), _mask(tensor, rows, torch.device("cpu"), "reference"))


@pytest.mark.parametrize("kind", ["distinct", "coarse", "neighbours", "special"])
@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.15), (0.9, 0.05), (0.3, 0.0)])
def test_rows_that_bins_decide(device, generator, kind, density, epsilon):
    """Few elements of a bin are left to be counted, in one row of several; none where all probabilities are equal.

    Neighbours share a bin, since there is an outlier.
    """
    rows = 3, 2100, 1
    tensor = torch.randn(rows, generator=generator).flatten()
    if kind == "coarse":
        tensor[2100:] = (8 * tensor[2100:]).round() / 8
    elif kind == "neighbours":
        tensor = 1 + 2**-23 * tensor.round()
        tensor[1::2100] = 1e6
    elif kind == "special":
        tensor[::7], tensor[3::50], tensor[5::90] = 0.0, torch.nan, torch.inf
    masks = []
    for where, backend in (("cpu", "reference"), (device, "cuda")):
        mask = torch.full((kernels.mask_words(tensor.numel()),), -7, dtype=torch.int32, device=where)
        ranked = kernels.Ranked(2, density, epsilon)
        kernels.rank_mask([mask], [tensor.to(where)], None, [ranked], rows=rows, key=9, backend=backend)
        masks.append(mask.cpu())
    assert torch.equal(*masks)


@pytest.mark.parametrize(
    ("dtype", "base"), [(B, B), (H, H), (F, F), (B, None), (H, B)], ids=lambda dtype: str(dtype).removeprefix("torch.")
)
@pytest.mark.parametrize("length", [1000, 1003])
def test_deltas_that_bins_decide(device, generator, dtype, base, length):
    """Of one dtype and of two; rows that begin where vectors do, and others. One has an outlier, one many zeros."""
    values = 0.02 * torch.randn(3, length, generator=generator)
    tensor = (values + 2e-3 * torch.randn(3, length, generator=generator)).to(dtype)
    tensor[1, 5] = 100.0
    if base is not None:
        values = values.to(base)
        values[2, ::3] = tensor[2, ::3].to(base)
    masks = []
    for where, backend in (("cpu", "reference"), (device, "cuda")):
        mask = torch.full((kernels.mask_words(tensor.numel()),), -7, dtype=torch.int32, device=where)
        of_base = None if base is None else values.flatten().to(where)
        ranked = kernels.Ranked(0, 0.5, 0.1)
        kernels.rank_mask(
            [mask], [tensor.flatten().to(where)], of_base, [ranked], rows=(3, length, 1), key=11, backend=backend
        )
        masks.append(mask.cpu())
    assert torch.equal(*masks)


@pytest.mark.parametrize("dtypes", [(B, B, B), (B, H, F)], ids=["one dtype", "several"])
def test_models_together(device, generator, dtypes):
    """Deltas of few magnitudes, of hardly any, and of none, each with chances of its own."""
    base = (0.02 * torch.randn(2 * 1024, generator=generator)).to(dtypes[0])
    steps = [step * torch.randn(2 * 1024, generator=generator) for step in (5e-4, 5e-5, 0)]
    tensors = [(base + step).to(dtype) for step, dtype in zip(steps, dtypes, strict=True)]
    models = [kernels.Ranked(0, 0.5, 0.499), kernels.Ranked(2, 0.4, 0.15), kernels.Ranked(3, 0.6, 0.35)]
    found = []
    for where, backend in (("cpu", "reference"), (device, "cuda")):
        masks = [torch.full((64,), -7, dtype=torch.int32, device=where) for _ in models]
        given = [tensor.to(where) for tensor in tensors]
        kernels.rank_mask(masks, given, base.to(where), models, rows=(2, 1024, 1), key=5, backend=backend)
        found.append([mask.cpu() for mask in masks])
    for expected, mask in zip(*found, strict=True):
        assert torch.equal(mask, expected)


def test_rows_whose_magnitudes_shared_memory_does_not_hold(device, generator):
    tensor, rows = torch.randn(20_504, generator=generator), (1, 20_504, 1)
    assert torch.equal(_mask(tensor, rows, device, "cuda"), _mask(tensor, rows, torch.device("cpu"), "reference"))


@pytest.mark.parametrize("rows", [(40, 7, 1), (3, 2100, 1), (2, 4097, 1), (2, 300, 5)])
def test_slices(device, generator, rows):
    """Some slices of a larger tensor, from an element on that is beyond 2**33 and no multiple of 8."""
    tensor, size = torch.randn(rows, generator=generator).flatten(), rows[1] * rows[2]
    for offset in (3 * size, 2**33 // size * size + size):
        expected = _mask(tensor, rows, torch.device("cpu"), "reference", offset)
        assert torch.equal(_mask(tensor, rows, device, "cuda", offset), expected)
