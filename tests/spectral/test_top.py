"""Leading triplets, TSV-M, factored maps and diagnostics."""

from __future__ import annotations

import pytest
import torch
from deltas import KINDS, boost_oracle, make_delta, relative_error

from fastmerge.kernels.spectral import (
    boost_factored,
    factored_svd,
    orthogonalize_blocks,
    spectrum,
    stable_rank,
    subspace_boost,
    top_singular,
)


@pytest.mark.parametrize("method", ["krylov", "exact", "svd"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(256, 256), (192, 400)], ids=str)
def test_best_approximation(kind, shape, method, generator):
    delta = make_delta(kind, *shape, generator)
    rank = 12
    exact_u, exact_s, exact_vh = torch.linalg.svd(delta.double(), full_matrices=False)
    best = (delta.double() - (exact_u[:, :rank] * exact_s[:rank]) @ exact_vh[:rank]).norm()
    u, s, vh, (info,) = top_singular(delta, rank, method=method)
    assert info.method == method
    assert u.shape == (shape[0], rank) and vh.shape == (rank, shape[1])
    assert (delta.double() - (u * s).double() @ vh.double()).norm() <= best * (1 + 1e-6)
    assert torch.allclose(s.double(), exact_s[:rank], rtol=0, atol=2e-6 * float(exact_s[0]))
    for basis in (u.mT @ u, vh @ vh.mT):
        assert torch.allclose(basis, torch.eye(rank), atol=1e-5)


def test_restarted_search_converges_on_a_dense_spectrum(generator):
    delta = make_delta("gaussian", 512, 512, generator)
    u, s, vh, (info,) = top_singular(delta, 4, tol=1e-5)
    assert info.method == "krylov" and info.residual <= 1e-5
    assert torch.allclose(s, torch.linalg.svdvals(delta)[:4], rtol=1e-5)
    assert relative_error(delta @ vh.mT, u * s) < 1e-5


def test_batch_with_zero_and_rank_deficient_matrices(generator):
    low = torch.randn(64, 2, generator=generator) @ torch.randn(2, 64, generator=generator)
    x = torch.stack([torch.zeros(64, 64), low, torch.randn(64, 64, generator=generator)])
    u, s, vh, infos = top_singular(x, 4)
    assert len(infos) == 3 and torch.equal(s[0], torch.zeros(4))
    assert s[1, 2] < 1e-5 * s[1, 0]
    assert torch.allclose(s, torch.linalg.svdvals(x)[:, :4], atol=1e-4)
    assert torch.allclose(u.mT @ u, torch.eye(4).expand(3, 4, 4), atol=1e-5)
    assert torch.allclose(vh @ vh.mT, torch.eye(4).expand(3, 4, 4), atol=1e-5)


def test_a_large_rank_takes_a_full_decomposition(generator):
    x = torch.randn(20, 16, generator=generator)
    x[:, 1] = x[:, 0] + 1e-6 * x[:, 1]
    for rank, method in ((15, "exact"), (16, "svd")):  # the last value is too small for its square
        u, s, vh, (info,) = top_singular(x, rank)
        assert info.method == method and relative_error((u * s) @ vh, x) < 1e-5
    with pytest.raises(ValueError, match=r"rank is 17; expected 1 to 16"):
        top_singular(x, 17)
    with pytest.raises(ValueError, match="method is 'exacted'"):
        top_singular(x, 2, method="exacted")


def test_blocks_of_orthogonal_tasks_are_summed_exactly(generator):
    left = torch.linalg.qr(torch.randn(60, 12, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(48, 12, generator=generator)).Q
    values = torch.rand(12, generator=generator) + 0.5
    tasks = [(left[:, i : i + 4] * values[i : i + 4]) @ right[:, i : i + 4].mT for i in (0, 4, 8)]
    merged, infos = orthogonalize_blocks(tasks, 4)
    assert len(infos) == 5
    assert relative_error(merged, sum(tasks)) < 1e-5


def test_blocks_follow_the_formula(generator):
    tasks = [make_delta("low_rank_noise", 96, 72, generator) for _ in range(3)]
    merged, _ = orthogonalize_blocks(tasks)
    svds = [torch.linalg.svd(task.double(), full_matrices=False) for task in tasks]

    def factor(blocks):
        u, _, vh = torch.linalg.svd(torch.cat(blocks, dim=1), full_matrices=False)
        return u @ vh

    left, right = factor([u[:, :24] for u, _, _ in svds]), factor([vh[:24].mT for _, _, vh in svds])
    assert relative_error(merged, (left * torch.cat([s[:24] for _, s, _ in svds])) @ right.mT) < 1e-4


def test_tasks_of_low_rank_take_only_their_own_directions(generator):
    left = torch.linalg.qr(torch.randn(64, 6, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(48, 6, generator=generator)).Q
    tasks = [left[:, i : i + 3] @ right[:, i : i + 3].mT for i in (0, 3)]
    assert relative_error(orthogonalize_blocks(tasks)[0], sum(tasks)) < 1e-5
    assert relative_error(orthogonalize_blocks([tasks[0], torch.zeros(64, 48)])[0], tasks[0]) < 1e-5
    # The arbitrary vectors of the reference code compete with the real ones.
    assert relative_error(orthogonalize_blocks(tasks, null="reference")[0], sum(tasks)) > 0.1


def test_blocks_of_one_task_and_of_a_task_given_twice(generator):
    task = torch.randn(32, 24, generator=generator)
    assert relative_error(orthogonalize_blocks([task])[0], task) < 1e-5
    low = torch.randn(32, 4, generator=generator) @ torch.randn(4, 24, generator=generator)
    assert relative_error(orthogonalize_blocks([low, low], 4)[0], low) < 1e-5
    with pytest.raises(ValueError, match=r"rank is 13; expected 1 to 12 for 2 tasks"):
        orthogonalize_blocks([low, low], 13)
    with pytest.raises(ValueError, match=r"deltas\[1\] has shape"):
        orthogonalize_blocks([low, low[:3]])


@pytest.mark.parametrize("beta", [0.0, 0.01, 0.5, 1.0])
def test_factored_boost_is_the_boost_of_the_product(beta, generator):
    up = torch.randn(3, 80, 6, generator=generator, dtype=torch.float64)
    down = torch.randn(3, 6, 60, generator=generator, dtype=torch.float64)
    new_up, new_down, infos = boost_factored(up.float(), down.float(), beta)
    assert new_up.dtype == torch.float32 and new_up.shape == up.shape and new_down.shape == down.shape
    product = up.float().double() @ down.float().double()
    full, full_infos = subspace_boost(product.float(), beta)
    assert relative_error(new_up.double() @ new_down.double(), full) < 1e-5
    for info, reference in zip(infos, full_infos, strict=True):
        assert (info.k, info.nullity) == (reference.k, 54)
        assert info.cut == pytest.approx(reference.cut, rel=1e-5)
        assert info.nuclear == pytest.approx(reference.nuclear, rel=1e-5)
    exact = boost_oracle(product[0], beta)[0] if beta == 1 else None
    assert exact is None or relative_error(new_up[0].double() @ new_down[0].double(), exact) < 1e-5


def test_factored_svd_of_stacked_adapters(generator):
    ups = [torch.randn(40, 4, generator=generator) for _ in range(3)]
    downs = [torch.randn(4, 30, generator=generator) for _ in range(3)]
    u, s, vh = factored_svd(torch.cat(ups, dim=1), torch.cat(downs))
    total = sum(up.double() @ down.double() for up, down in zip(ups, downs, strict=True))
    assert relative_error((u * s) @ vh, total) < 1e-13
    assert torch.allclose(s, torch.linalg.svdvals(total)[:12], rtol=1e-12)


def test_factored_edge_cases(generator):
    up, down, (info,) = boost_factored(torch.zeros(5, 2), torch.ones(2, 3))
    assert info.method == "zero" and torch.equal(up @ down, torch.zeros(5, 3))
    wide = torch.randn(3, 9, generator=generator), torch.randn(9, 4, generator=generator)
    new_up, new_down, _ = boost_factored(*wide, 0.0)
    assert new_up.shape == (3, 3) and new_down.shape == (3, 4)
    assert relative_error(new_up @ new_down, boost_oracle(wide[0] @ wide[1], 0.0)[0]) < 1e-5
    with pytest.raises(ValueError, match=r"down has shape \(2, 3\)"):
        factored_svd(torch.ones(5, 3), torch.ones(2, 3))


def test_diagnostics(generator):
    x = make_delta("power_one", 96, 64, generator)
    s = torch.linalg.svdvals(x.double())
    assert torch.allclose(spectrum(x), s, rtol=0, atol=1e-7 * float(s[0]))
    assert torch.allclose(spectrum(x.mT), s, rtol=0, atol=1e-7 * float(s[0]))
    assert stable_rank(x) == pytest.approx(float(s.square().sum() / s[0].square()), rel=1e-5)
    assert torch.equal(stable_rank(torch.zeros(2, 3, 3)), torch.zeros(2, dtype=torch.float64))


def test_stable_rank_of_a_mean_collapses_to_the_common_part(generator):
    """N tasks with a common rank-2 part: the noise in their mean falls as 1 / sqrt(N)."""
    common = torch.randn(128, 2, generator=generator) @ torch.randn(2, 128, generator=generator)
    tasks = common + 3 * torch.randn(64, 128, 128, generator=generator)
    ranks = [float(stable_rank(tasks[:count].mean(dim=0))) for count in (1, 4, 16, 64)]
    assert ranks[0] > ranks[1] > ranks[2] > ranks[3]
    assert ranks[-1] < 3
    noise = [float(torch.linalg.matrix_norm(tasks[:count].mean(dim=0) - common, 2)) for count in (4, 64)]
    assert noise[0] / noise[1] == pytest.approx(4, rel=0.1)
