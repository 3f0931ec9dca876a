"""Merging shards in place: processes that talk through gloo, against one process that holds whole tensors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import shard_calls
import shard_failures
import shard_worker as worker
import torch
import torch.multiprocessing

from fastmerge.methods import all_methods

MORE = (*shard_calls.CASES, *shard_failures.CASES)


def failures_of(folder, ranks, *arguments):
    """Start ranks and return what failed on each, by case; None of a case that passed."""
    torch.multiprocessing.spawn(worker.work, (ranks, folder, *arguments), nprocs=ranks)
    return [torch.load(folder / f"failures{rank}") for rank in range(ranks)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return failures_of(tmp_path_factory.mktemp("two"), 2, 1, (2,), list(worker.PLACEMENTS), False, MORE)


@pytest.mark.parametrize("name", [f"{case.name}, {where}" for case, where in worker.inventory(list(worker.PLACEMENTS))])
def test_merges_as_one_process_does(two, name):
    for failures in two:
        assert failures[name] is None


@pytest.mark.parametrize("case", MORE, ids=lambda case: case.__name__)
def test_on_two_ranks(two, case):
    for failures in two:
        assert failures[case.__name__] is None


def test_the_page_names_every_method():
    page = (Path(__file__).parents[2] / "docs" / "shards.md").read_text()
    table = page.split("## Methods")[1].split("\n\n")[2]
    assert set(all_methods()) == set(re.findall(r"\w+", table)) & set(all_methods())


@pytest.mark.slow
def test_on_a_plane_of_four_ranks(tmp_path):
    for failures in failures_of(tmp_path, 4, 2, (2, 2), list(worker.PLANES), False, shard_calls.ON_A_PLANE):
        assert failures and not any(failures.values()), failures


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", [1, 2])
def test_on_gpus(tmp_path, ranks):
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"NCCL needs a GPU for each of {ranks} ranks")
    for failures in failures_of(tmp_path, ranks, 3, (ranks,), list(worker.PLACEMENTS), True, (), "cuda"):
        assert failures and not any(failures.values()), failures
