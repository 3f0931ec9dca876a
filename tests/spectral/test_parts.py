"""Boosting of a matrix that is split over ranks, here threads, against the whole matrix."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from deltas import boost_oracle, make_delta, relative_error

from fastmerge.kernels.spectral import boost_part
from fastmerge.steps.shards.dealing import deal


def on_ranks(parts, beta, dim=-2, noise=0.0):
    """What ``boost_part`` returns, or raises, for each part; parts of a sum are added up in the order of ranks."""
    barrier, given = threading.Barrier(len(parts), timeout=60), {}

    def run(rank):
        def total(part):
            given[rank] = part
            barrier.wait()
            result = sum(given[r] for r in range(len(parts)))
            barrier.wait()
            return result

        try:
            return boost_part(parts[rank], beta, dim=dim, total=total, noise=noise)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(len(parts)) as ranks:
        return list(ranks.map(run, range(len(parts))))


def boosted(parts, beta, dim=-2, **options):
    """The whole matrix, and what was done: the same on every rank."""
    results, infos = zip(*on_ranks(parts, beta, dim, **options), strict=True)
    assert all(info == infos[0] for info in infos)
    return torch.cat(results, dim), infos[0]


def uneven(whole, dim):
    """Parts of three ranks, the last one empty."""
    size = whole.shape[dim]
    return whole.split([size - size // 3, size // 3, 0], dim)


@pytest.mark.parametrize("dim", [-2, -1])
@pytest.mark.parametrize(
    ("kind", "shape", "beta"),
    [("bfloat16_difference", (96, 96), 0.1), ("power_one", (200, 40), 0.01), ("gaussian", (64, 48), 0.5)],
)
def test_parts_are_those_of_the_boosted_matrix(kind, shape, beta, dim, generator):
    whole = make_delta(kind, *shape, generator)
    whole = 1e-20 * (whole if dim == -2 else whole.mT.contiguous())
    exact, k = boost_oracle(whole, beta)
    peer = relative_error(boost_oracle(whole, beta, torch.float32)[0], exact)
    result, info = boosted(uneven(whole, dim), beta, dim)
    assert info.method == "accurate" and info.k == k, info
    assert relative_error(result, exact) <= 1.5 * peer + 1e-6


def test_directions_that_the_matrix_lacks_stay_zero(generator):
    low_rank = torch.randn(60, 5, generator=generator) @ torch.randn(5, 40, generator=generator)
    exact, k = boost_oracle(low_rank, 0.1)
    result, info = boosted(low_rank.chunk(3), 0.1)
    assert info.method == "exact" and (info.k, info.nullity) == (k, 35)
    assert relative_error(result, exact) < 1e-5
    zero, info = boosted([torch.zeros(4, 3)] * 3, 0.1)
    assert info.method == "zero" and not zero.any()


def test_what_is_not_certified_is_nobodys(generator):
    """Its smallest value is lost in the square."""
    values = torch.tensor([1.0, 0.5, 2.0**-22 * 1.1], dtype=torch.float64)
    left, right = (torch.linalg.qr(torch.randn(n, 3, generator=generator, dtype=torch.float64)).Q for n in (9, 3))
    assert on_ranks(((left * values) @ right.mT).float().chunk(3), 0.1) == [None] * 3


@pytest.mark.parametrize(
    ("parts", "beta", "message"),
    [
        ([torch.ones(4, 50)] * 3, 0.1, "shard is a part of 12 x 50, split along its shorter side"),
        ([torch.ones(9, 2), torch.full((9, 2), torch.nan)], 0.1, "elements that are NaN or infinite"),
        ([torch.ones(9, 2)] * 2, 2.0, "beta is 2"),
    ],
)
def test_every_rank_refuses_what_one_cannot_take(parts, beta, message):
    for error in on_ranks(parts, beta):
        with pytest.raises(ValueError, match=message):
            raise error


def test_costs_are_balanced():
    assert deal([1, 1, 1, 1], 4) == [0, 1, 2, 3]
    assert deal([], 3) == []
    costs = [160, 240, 240, 240, 160, 8, 8, 8]
    owners = deal(costs, 3)
    loads = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(3)]
    assert max(loads) <= 4 / 3 * sum(costs) / 3
