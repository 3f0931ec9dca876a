"""The Krylov search with the orthogonalization that a GPU uses, on the CPU."""

from __future__ import annotations

import pytest
import torch
from deltas import KINDS, make_delta, relative_error

from fastmerge.kernels.spectral import _krylov, subspace_boost, top_singular


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setitem(_krylov.ORTHONORMAL, "cpu", _krylov.by_cholesky)


def test_batch_of_all_kinds(generator):
    deltas = torch.stack([make_delta(kind, 200, 120, generator) for kind in KINDS])
    u, s, vh, infos = top_singular(deltas, 8, method="krylov")
    assert all(info.method == "krylov" for info in infos)
    assert torch.allclose(s, torch.linalg.svdvals(deltas)[:, :8], rtol=1e-5)
    eye = torch.eye(8).expand(len(deltas), 8, 8)
    assert relative_error(u.mT @ u, eye) < 1e-5 and relative_error(vh @ vh.mT, eye) < 1e-5
    assert (deltas @ vh.mT - u * s.unsqueeze(-2)).norm() < 2e-4 * deltas.norm()


def test_spaces_that_are_exhausted(generator):
    low_rank = torch.randn(90, 3, generator=generator) @ torch.randn(3, 60, generator=generator)
    single = torch.zeros(90, 60)
    single[4, 7] = -2.0
    u, s, vh, _ = top_singular(torch.stack([low_rank, single, torch.zeros(90, 60)]), 3, method="krylov")
    assert relative_error((u * s.unsqueeze(-2)) @ vh, torch.stack([low_rank, single, torch.zeros(90, 60)])) < 1e-5
    assert torch.allclose(s[1:], torch.tensor([[2.0, 0, 0], [0, 0, 0]]), atol=1e-5)


def test_condition_of_the_columns(generator):
    columns = torch.linalg.qr(torch.randn(300, 16, generator=generator)).Q * torch.logspace(0, -6, 16)
    x = columns[None] @ torch.randn(16, 16, generator=generator)
    once, r = _krylov.by_cholesky(x)
    q, r_again = _krylov.by_cholesky(once)
    assert relative_error(q.mT @ q, torch.eye(16)[None]) < 1e-6
    assert relative_error(q.double() @ r_again @ r, x) < 1e-6


@pytest.mark.parametrize("kind", ["bfloat16_difference", "power_one"])
def test_boosting(kind, generator):
    delta = make_delta(kind, 256, 160, generator)
    expected = subspace_boost(delta, 0.2, method="svd")[0]
    assert relative_error(subspace_boost(delta, 0.2, method="accurate")[0], expected) < 2e-5
