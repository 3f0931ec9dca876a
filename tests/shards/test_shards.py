"""Merging shards in place: processes that talk through gloo, against one process that holds whole tensors."""

from __future__ import annotations

import pytest
import shard_worker as worker
import torch
import torch.multiprocessing


def failures_of(folder, ranks, *arguments):
    """Start ranks and return what failed on each, by case; None of a case that passed."""
    torch.multiprocessing.spawn(worker.work, (ranks, folder, *arguments), nprocs=ranks)
    return [torch.load(folder / f"failures{rank}") for rank in range(ranks)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return failures_of(tmp_path_factory.mktemp("two"), 2, 1, (2,), worker.PLACEMENTS, worker.MORE)


@pytest.mark.parametrize("where", worker.PLACEMENTS)
@pytest.mark.parametrize("method", worker.METHODS)
def test_merges_as_one_process_does(two, method, where):
    for failures in two:
        assert failures[f"{method}, {where}"] is None


@pytest.mark.parametrize("case", worker.MORE, ids=lambda case: case.__name__)
def test_on_two_ranks(two, case):
    for failures in two:
        assert failures[case.__name__] is None


@pytest.mark.slow
def test_on_a_plane_of_four_ranks(tmp_path):
    for failures in failures_of(tmp_path, 4, 2, (2, 2), worker.PLANES):
        assert failures and not any(failures.values()), failures


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs a GPU for each of two ranks")
def test_on_two_gpus(tmp_path):
    for failures in failures_of(tmp_path, 2, 3, (2,), worker.PLACEMENTS, (), "cuda"):
        assert failures and not any(failures.values()), failures
