"""Higher-order GSVD: its defining identities, shared and isolated directions, rank deficiency."""

from __future__ import annotations

import pytest
import torch
from deltas import relative_error

from fastmerge.kernels.spectral import higher_order_gsvd


def assert_identities(result, matrices):
    assert torch.allclose(result.sigma.square().sum(dim=0), torch.ones_like(result.tau), atol=1e-9)
    for matrix, sigma in zip(matrices, result.sigma, strict=True):
        left = matrix.double() @ result.dual
        assert relative_error(left @ result.v.mT, matrix) < 1e-9
        assert torch.allclose(torch.linalg.vector_norm(left, dim=0), sigma, atol=1e-9)


@pytest.mark.parametrize("shapes", [[(30, 12), (20, 12), (15, 12)], [(8, 12)] * 3, [(3, 40), (5, 40)]], ids=str)
def test_identities(shapes, generator):
    matrices = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    result = higher_order_gsvd(matrices)
    assert len(result.tau) == min(shapes[0][1], sum(rows for rows, _ in shapes))
    assert_identities(result, matrices)


def test_identical_matrices_share_every_direction(generator):
    matrix = torch.randn(20, 6, generator=generator)
    result = higher_order_gsvd([matrix] * 3)
    assert torch.allclose(result.sigma, torch.full((3, 6), 3**-0.5, dtype=torch.float64))
    assert torch.allclose(result.tau, torch.full((6,), 2.991027, dtype=torch.float64), atol=1e-6)
    assert result.shared().all() and not result.isolated().any()
    assert torch.allclose(result.overlap(), torch.ones(3, 3, dtype=torch.float64))


def test_disjoint_matrices_share_none(generator):
    first, second = torch.zeros(20, 9), torch.zeros(20, 9)
    first[:, :4] = torch.randn(20, 4, generator=generator)
    second[:, 4:] = torch.randn(20, 5, generator=generator)
    result = higher_order_gsvd([first, second])
    assert torch.allclose(result.tau, torch.full((9,), 500.4995, dtype=torch.float64), atol=1e-3)
    assert result.isolated().all() and not result.shared().any()
    assert torch.allclose(result.sigma.round(), result.sigma, atol=1e-9)
    assert result.sigma.argmax(dim=0).bincount().tolist() == [4, 5]
    assert torch.allclose(result.overlap(), torch.eye(2, dtype=torch.float64), atol=1e-9)
    assert_identities(result, [first, second])


def test_isolated_directions_of_three_experts_beside_shared_ones(generator):
    frame = torch.linalg.qr(torch.randn(30, 30, generator=generator, dtype=torch.float64)).Q
    left = torch.linalg.qr(torch.randn(40, 8, generator=generator, dtype=torch.float64)).Q
    matrices = []
    for expert in range(3):
        own = frame[:, 2 + 6 * expert : 8 + 6 * expert]
        matrices.append(left @ torch.cat([frame[:, :2], own], dim=1).mT)
    result = higher_order_gsvd(matrices)
    assert len(result.tau) == 20 and int(result.shared().sum()) == 2 and int(result.isolated().sum()) == 18
    owners = result.sigma.argmax(dim=0)[result.isolated()]
    assert owners.bincount().tolist() == [6, 6, 6]
    assert torch.allclose(result.sigma[:, result.isolated()].amax(dim=0), torch.ones(18, dtype=torch.float64))
    # Each expert has 2 shared directions of weight 1/3 x 3 = 1 and 6 of its own.
    expected = torch.full((3, 3), 2 / 8, dtype=torch.float64).fill_diagonal_(1)
    assert torch.allclose(result.overlap(), expected, atol=1e-9)


def test_weighted_overlap_tells_sharing_experts_apart_under_noise(generator):
    def task(*signals):
        return sum(signals) + 0.02 * torch.randn(64, 48, generator=generator)

    signal = [torch.randn(64, 2, generator=generator) @ torch.randn(2, 48, generator=generator) for _ in range(3)]
    overlap = higher_order_gsvd([task(signal[0]), task(signal[0], 0.1 * signal[1]), task(signal[2])]).overlap()
    assert overlap[0, 1] > 0.7 and overlap[0, 2] < 0.3 and overlap[1, 2] < 0.3


def test_alignment_tells_unrelated_experts_of_full_rank_from_related_ones(generator):
    noise = [torch.randn(300, 40, generator=generator) for _ in range(3)]
    experts = [noise[0], noise[1], noise[0] + 0.3 * noise[2], -noise[0]]
    result = higher_order_gsvd(experts)
    overlap, alignment = result.overlap(), result.alignment(experts)
    # All directions are used by all experts, whatever they do with them.
    assert overlap[0, 1] > 0.7
    assert alignment[0, 1] < 0.1 and alignment[1, 2] < 0.1
    assert alignment[0, 2] > 0.9 and alignment[0, 3] > 0.999
    assert torch.equal(alignment, alignment.T) and torch.equal(alignment.diagonal(), torch.ones(4).double())
    columns = torch.stack([expert.double() @ result.dual for expert in experts])
    weight = result.v.square().sum(dim=0)
    inner = (columns[0] * columns[1]).sum(dim=0).abs() @ weight
    total = (columns[0].square() + columns[1].square()).sum(dim=0) @ weight
    assert alignment[0, 1] == pytest.approx(float(2 * inner / total), rel=1e-9)


def test_an_expert_that_changes_nothing_has_nothing_in_common(generator):
    experts = [torch.randn(20, 6, generator=generator), torch.zeros(20, 6), torch.zeros(20, 6)]
    result = higher_order_gsvd(experts)
    assert torch.equal(result.overlap(), torch.eye(3).double())
    assert torch.equal(result.alignment(experts), torch.eye(3).double())


@pytest.mark.parametrize(
    "deltas, message",
    [
        ([torch.ones(2, 2)], "deltas has 1 matrices"),
        ([torch.ones(2, 2), torch.ones(2, 3)], r"deltas\[1\] has shape \(2, 3\)"),
        ([torch.zeros(2, 2), torch.zeros(2, 2)], "all zero"),
    ],
)
def test_wrong_arguments_are_named(deltas, message):
    with pytest.raises(ValueError, match=message):
        higher_order_gsvd(deltas)
    with pytest.raises(ValueError, match="ridge is 0"):
        higher_order_gsvd([torch.ones(2, 2)] * 2, ridge=0)
