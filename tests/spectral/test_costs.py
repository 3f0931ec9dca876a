"""What boosting on a GPU takes, counted on a device that computes on the CPU: products, launches and waits."""

from __future__ import annotations

import pytest
import torch
from counting import counting_device
from deltas import boost_oracle, make_delta, relative_error

from fastmerge.kernels.spectral import subspace_boost
from fastmerge.kernels.spectral._products import Products

split_product = pytest.importorskip("fastmerge.kernels._triton.split_product")


@pytest.mark.parametrize(("batch", "m", "n"), [(1, 192, 192), (3, 352, 132)])
def test_products_launches_and_waits(batch, m, n, monkeypatch):
    # Of other seeds, one square matrix in a hundred takes its last step twice.
    generator = torch.Generator().manual_seed(1)
    monkeypatch.setattr(Products, "on", staticmethod(lambda device: Products(split_product)))
    deltas = torch.stack([make_delta("gaussian", m, n, generator) for _ in range(batch)])
    deltas += 0.3 * make_delta("low_rank_noise", m, n, generator)
    decomposed, decompose = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda h: decomposed.append(h.shape) or decompose(h))
    with counting_device(split_product) as (on, counts):
        results, infos = subspace_boost(on(deltas), 0.05)
    for delta, result, info in zip(deltas, results.inner, infos, strict=True):
        assert info.method == "accurate" and info.iterations == (5 if m == n else 4)
        assert relative_error(result, boost_oracle(delta, 0.05)[0]) < 1e-5
    # In products of n x n float16 matrices, three for each split one, of which symmetric ones are made by halves.
    large = sum(
        count * 3 * rows * terms / n**2 / (2 if symmetric else 1)
        for (_, rows, terms, columns, symmetric), count in counts.products.items()
        if columns == n
    )
    assert large == pytest.approx(37.5 if m == n else 15 + 13.5 * m / n)
    # Of 32 columns, or fewer: bound, look, repair, certificates, and the search.
    assert sum(counts.products.values()) <= (24 if m == n else 16) + 8 + 13 + 5 + 15
    # The largest element, the look (twice where it repairs), the certificates, and two for a search of one step.
    assert counts.waits <= (6 if m == n else 5)
    assert counts.launches < (485 if m == n else 450)
    # Eigenvectors are those of the search, and of a repair.
    assert len(decomposed) <= (2 if m == n else 1)
    # Passes for the largest element: a product finds that of its own result.
    searched = sum(count for (_, *shape), count in counts.searches.items() if min(shape) == n)
    assert searched <= 11
