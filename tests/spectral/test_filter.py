"""The search of a GPU for leading triplets, and the repair of the polar iteration, with the products of a CPU."""

from __future__ import annotations

import pytest
import torch
from deltas import KINDS, boost_oracle, make_delta, relative_error
from split_pieces import SPLIT

from fastmerge.kernels.spectral import _by_products, subspace_boost, top_singular
from fastmerge.kernels.spectral._by_products import by_products
from fastmerge.kernels.spectral._filter import by_cholesky, largest_bound, orthonormal
from fastmerge.kernels.spectral._polar import polar_factor
from fastmerge.kernels.spectral._products import FLOAT32
from fastmerge.kernels.spectral._rules import Boost


def test_batch_of_all_kinds(generator):
    deltas = torch.stack([make_delta(kind, 300, 260, generator) for kind in KINDS])
    u, s, vh, infos = top_singular(deltas, 8, method="filter")
    assert all(info.method == "filter" and info.residual <= 1e-4 for info in infos)
    assert torch.allclose(s, torch.linalg.svdvals(deltas)[:, :8], rtol=1e-5)
    eye = torch.eye(8).expand(len(deltas), 8, 8)
    assert relative_error(u.mT @ u, eye) < 1e-5 and relative_error(vh @ vh.mT, eye) < 1e-5
    assert (deltas @ vh.mT - u * s.unsqueeze(-2)).norm() < 2e-4 * deltas.norm()


def test_spaces_that_are_exhausted(generator):
    low_rank = torch.randn(190, 3, generator=generator) @ torch.randn(3, 160, generator=generator)
    single = torch.zeros(190, 160)
    single[4, 7] = -2.0
    deltas = torch.stack([low_rank, single, torch.zeros(190, 160)])
    u, s, vh, infos = top_singular(deltas, 3, method="filter")
    assert infos[0].method == "filter"
    assert relative_error((u * s.unsqueeze(-2)) @ vh, deltas) < 1e-5
    assert torch.allclose(s[1:], torch.tensor([[2.0, 0, 0], [0, 0, 0]]), atol=1e-5)


def test_condition_of_the_columns(generator):
    columns = torch.linalg.qr(torch.randn(300, 16, generator=generator)).Q * torch.logspace(0, -6, 16)
    x = columns[None] @ torch.randn(16, 16, generator=generator)
    q = orthonormal(x)
    assert relative_error(q.mT @ q, torch.eye(16)[None]) < 1e-6
    # It spans the columns.
    assert relative_error(q.double() @ (q.double().mT @ x.double()), x) < 1e-6
    assert not by_cholesky(torch.zeros(1, 5, 2)).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [24, 256])
def test_the_bound_of_the_largest_value_is_above_and_near(kind, n, generator):
    delta = make_delta(kind, n, n, generator)
    delta = delta / delta.norm()
    bound = float(largest_bound((delta.mT @ delta)[None], FLOAT32)[0].sqrt())
    largest = float(torch.linalg.svdvals(delta)[0])
    assert largest <= bound <= 1.06 * largest
    assert 1 <= float(largest_bound(torch.ones(1, 1, 1), FLOAT32)) <= 1.06


def with_values(values, m, generator):
    """A matrix of these singular values, as float32 rounds it, and its polar factor."""
    n = len(values)
    left, right = (torch.linalg.qr(torch.randn(s, n, generator=generator, dtype=torch.float64)).Q for s in (m, n))
    return ((left * values) @ right.mT).float()[None], left @ right.mT


@pytest.mark.parametrize("small", [0, 1, 11, 12, 40])
@pytest.mark.parametrize("m", [128, 320])
def test_few_small_directions_are_repaired_and_many_extend_the_schedule(m, small, generator):
    values = torch.linspace(1, 0.3, 128, dtype=torch.float64)
    if small:
        values[-small:] = torch.logspace(-3.5, -4, small, dtype=torch.float64)
    x, exact = with_values(values, m, generator)
    found = polar_factor(FLOAT32.operand(x), FLOAT32.gram(x), FLOAT32)
    extended = small >= 12
    base = 3 if m > 128 else 4
    assert found.nullity == [0]
    assert (found.steps[0] > base + 2) == extended
    peer = torch.linalg.svd(x[0], full_matrices=False)
    assert relative_error(found.factor.whole[0], exact) <= 1.5 * relative_error(peer.U @ peer.Vh, exact) + 1e-6


def test_only_matrices_that_need_it_are_extended(generator):
    easy, hard = torch.linspace(1, 0.3, 64, dtype=torch.float64), torch.logspace(0, -4.5, 64, dtype=torch.float64)
    pairs = [with_values(values, 64, generator) for values in (easy, hard, easy)]
    x = torch.cat([pair[0] for pair in pairs])
    found = polar_factor(FLOAT32.operand(x), FLOAT32.gram(x), FLOAT32)
    assert found.steps[0] == found.steps[2] < found.steps[1]
    for factor, (single, exact) in zip(found.factor.whole, pairs, strict=True):
        peer = torch.linalg.svd(single[0])
        assert relative_error(factor, exact) <= 1.5 * relative_error(peer.U @ peer.Vh, exact) + 1e-6


@pytest.mark.parametrize("products", [FLOAT32, SPLIT], ids=["float32", "split"])
def test_null_directions_are_counted_and_stay_null(products, generator):
    delta = make_delta("bfloat16_difference", 160, 96, generator)
    delta[:, [3, 40, 41]] = 0
    exact, k = boost_oracle(delta, 0.2)
    result, (info,), accepted = by_products(delta[None], [Boost(0.2)], products=products)
    assert accepted == [True] and (info.nullity, info.k) == (3, k)
    assert relative_error(result[0], exact) < 1e-5 and result[0][:, 40].abs().max() < 1e-9 * info.cut
    assert by_products(delta[None], [Boost(0.2)], keep=False)[2] == [False]
    # More of them than are looked at: another route has to count them.
    delta[:, :30] = 0
    assert by_products(delta[None], [Boost(0.2)])[2] == [False]
    # What rounding left of them.
    x, _ = with_values(torch.tensor([1.0] * 90 + [0.0] * 6).double(), 96, generator)
    assert torch.linalg.svdvals(x.double())[0, -1] > 0 and by_products(x, [Boost(0.2)])[1][0].nullity == 6


def test_one_matrix_without_a_leading_part_does_not_keep_the_others_from_their_triplets(generator, monkeypatch):
    decomposed = []
    decompose = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda h: decomposed.append(tuple(h.shape)) or decompose(h))
    deltas = torch.stack([make_delta(kind, 200, 160, generator) for kind in ("gaussian", "low_rank_noise")])
    results, infos, accepted = by_products(deltas, [Boost(0.5)] * len(deltas))
    assert all(accepted) and decomposed.count((160, 160)) == 1
    for delta, result, info in zip(deltas, results, infos, strict=True):
        exact, k = boost_oracle(delta, 0.5)
        assert info.k == k and relative_error(result, exact) < 1e-5


def test_a_wrong_factor_fails_its_certificate(generator, monkeypatch):
    delta = make_delta("gaussian", 96, 64, generator)[None]
    right = _by_products.polar_factor
    turn = torch.linalg.qr(torch.eye(64) + 1e-4 * torch.randn(64, 64, generator=generator)).Q

    for wrong in (lambda p: p * (1 + 1e-5), lambda p: p @ turn):

        def spoilt(*arguments, wrong=wrong):
            found = right(*arguments)
            return type(found)(FLOAT32.operand(wrong(found.factor.whole)), found.null, found.nullity, found.steps)

        monkeypatch.setattr(_by_products, "polar_factor", spoilt)
        assert by_products(delta, [Boost(0.2)])[2] == [False]


def test_an_iteration_that_diverges_leaves_the_matrices_to_the_next_route(generator, monkeypatch):
    deltas = torch.stack([make_delta("gaussian", 96, 64, generator) for _ in range(2)])
    bound = _by_products.largest_bound
    monkeypatch.setattr(_by_products, "largest_bound", lambda *arguments: bound(*arguments) / 4)
    assert by_products(deltas, [Boost(0.2)] * 2)[2] == [False, False]
    results, infos = subspace_boost(deltas, 0.2, method="accurate")
    assert [info.method for info in infos] == ["exact", "exact"]
    assert relative_error(results[1], boost_oracle(deltas[1], 0.2)[0]) < 1e-6
