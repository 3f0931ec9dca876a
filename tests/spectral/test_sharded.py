"""Boosting of matrices that are split over ranks: processes that talk through gloo, against the whole matrices."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from deltas import boost_oracle, make_delta, relative_error
from ranks import end_well

from fastmerge.kernels.spectral import boost_shards, boost_together, subspace_boost
from fastmerge.kernels.spectral.sharded import deal

RANKS = 3


def work(rank, store, seed):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    for case in (dealt, together, together_without_full_rank, together_refuses):
        case(torch.Generator().manual_seed(seed), rank, RANKS, None)
    # Ranks in a group are not those in the world.
    group = dist.new_group([1, 2])
    if rank:
        dealt(torch.Generator().manual_seed(seed), rank - 1, 2, group)
    end_well()


@pytest.mark.slow
def test_on_three_ranks(tmp_path, generator):
    seed = int(torch.randint(2**31, (), generator=generator))
    torch.multiprocessing.spawn(work, (tmp_path / "store", seed), nprocs=RANKS)


def same_everywhere(value, group):
    """The same on every rank."""
    everyone = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, value, group)
    return all(other == value for other in everyone)


def sizes_of(total, ranks):
    """Uneven parts, that of a third rank empty."""
    return [total - total // 3, total // 3, 0][:ranks]


def dealt(generator, rank, ranks, group):
    shapes = [(40, 24), (24, 40), (3, 30, 20), (64, 64), (7, 5)]
    for dim in (-2, -1):
        wholes = [0.01 * torch.randn(shape, generator=generator) for shape in shapes]
        wholes[4] *= 0
        parts = [whole.split(sizes_of(whole.shape[dim], ranks), dim)[rank] for whole in wholes]
        results, infos = boost_shards(parts, 0.2, dim=dim, group=group)
        for whole, result, info in zip(wholes, results, infos, strict=True):
            expected, expected_info = subspace_boost(whole, 0.2)
            assert torch.equal(result, expected.split(sizes_of(whole.shape[dim], ranks), dim)[rank])
            assert info == expected_info
    assert boost_shards([], group=group) == ([], [])
    with pytest.raises(ValueError, match=r"on rank 1, shards\[0\] has elements that are NaN"):
        boost_shards([torch.full((2, 2), torch.nan if rank == 1 else 1.0)], group=group)
    with pytest.raises(ValueError, match="beta is 2"):
        boost_shards([torch.ones(2, 2)], 2.0, group=group)


def together(generator, rank, ranks, group):
    for kind, shape, beta in (
        ("bfloat16_difference", (96, 96), 0.1),
        ("power_one", (200, 40), 0.01),
        ("gaussian", (64, 48), 0.5),
    ):
        for dim in (-2, -1):
            whole = make_delta(kind, *shape, generator)
            whole = 1e-20 * (whole if dim == -2 else whole.mT.contiguous())
            exact, k = boost_oracle(whole, beta)
            peer = relative_error(boost_oracle(whole, beta, torch.float32)[0], exact)
            sizes = sizes_of(whole.shape[dim], ranks)
            result, info = boost_together(whole.split(sizes, dim)[rank], beta, dim=dim, group=group)
            assert info.method == "accurate" and info.k == k, info
            assert same_everywhere(info, group)
            pieces = [None] * ranks
            dist.all_gather_object(pieces, result, group)
            assert relative_error(torch.cat(pieces, dim), exact) <= 1.5 * peer + 1e-6


def together_without_full_rank(generator, rank, ranks, group):
    low_rank = torch.randn(60, 5, generator=generator) @ torch.randn(5, 40, generator=generator)
    exact, k = boost_oracle(low_rank, 0.1)
    for null in ("keep", "reference"):
        result, info = boost_together(low_rank.chunk(ranks)[rank], 0.1, group=group, null=null)
        assert info.k == k and same_everywhere(info, group)
        pieces = [None] * ranks
        dist.all_gather_object(pieces, result, group)
        boosted = torch.cat(pieces)
        if null == "keep":
            assert info.nullity == 35 and relative_error(boosted, exact) < 1e-5
        else:
            assert torch.linalg.svdvals(boosted)[-1] == pytest.approx(info.cut, rel=1e-4)
    zero, info = boost_together(torch.zeros(4, 3), group=group)
    assert info.method == "zero" and not zero.any()


def together_refuses(generator, rank, ranks, group):
    with pytest.raises(ValueError, match=f"{4 * ranks} x 50, split along the shorter side; use boost_shards"):
        boost_together(torch.ones(4, 50), group=group)
    with pytest.raises(ValueError, match="NaN or infinite"):
        boost_together(torch.full((9, 2), torch.nan if rank == 1 else 1.0), group=group)
    with pytest.raises(ValueError, match=r"shard has shape \(9, 2\) and dtype torch.bfloat16"):
        boost_together(torch.ones(9, 2, dtype=torch.bfloat16), group=group)
    with pytest.raises(ValueError, match="dim is 0"):
        boost_together(torch.ones(9, 2), dim=0, group=group)


def test_costs_are_balanced():
    assert deal([1, 1, 1, 1], 4) == [0, 1, 2, 3]
    assert deal([], 3) == []
    costs = [160, 240, 240, 240, 160, 8, 8, 8]
    owners = deal(costs, 3)
    loads = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(3)]
    assert max(loads) <= 4 / 3 * sum(costs) / 3
