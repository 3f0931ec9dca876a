"""How tensors lie on meshes, and how those that are merged whole are dealt out: no ranks are started."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import pytest
import torch

from fastmerge.methods import configure, get_method
from fastmerge.steps.inputs import Inputs
from fastmerge.steps.shards import Layout, ShardJob, dealing, jobs

SHAPES = [(), (0,), (1,), (7,), (5, 3), (1, 9), (12, 8), (3, 4, 5)]
MESHES = [(1,), (3,), (2, 2), (2, 3)]


def layouts(shape, mesh):
    """Every way to cut a tensor by the dimensions of a mesh, or to copy it."""
    choices = [None, *((dim, pieces) for dim in range(len(shape)) for pieces in (1, 2))]
    for splits in product(choices, repeat=len(mesh)):
        yield [Layout(shape, mesh, splits, here) for here in range(torch.Size(mesh).numel())]


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_and_runs_are_the_same_elements(shape, mesh):
    numbers = torch.arange(torch.Size(shape).numel()).view(shape)
    for ranks in layouts(shape, mesh):
        held = []
        for layout in ranks:
            part = torch.full(layout.part_shape(layout.here), -1)
            for block in layout.blocks(layout.here):
                part[block.part] = numbers[block.whole]
            by_runs = [i for start, stop, _ in layout.runs for i in range(start, stop)]
            assert part.flatten().tolist() == by_runs
            held += by_runs if layout.is_first(layout.here) else []
        # Every element once, copies left aside.
        assert sorted(held) == list(range(numbers.numel()))
        assert all(layout.every[layout.here].numel in (0, layout.runs.numel) for layout in ranks)


@pytest.mark.parametrize(
    "shape, splits, side",
    [
        ((9, 4), ((0, 1), None), -2),
        ((9, 4), ((0, 2), (0, 1)), -2),
        ((4, 9), (None, (1, 1)), -1),
        ((4, 4), ((1, 1), None), -1),
        ((9, 4), ((1, 1), None), None),
        ((9, 4), ((0, 1), (1, 1)), None),
        ((9, 4), (None, None), None),
        ((9, 4, 1), ((0, 1), None), None),
    ],
)
def test_matrices_that_are_cut_along_their_longer_side(shape, splits, side):
    assert Layout(shape, (2, 2), splits, 0).long_side == side


def job(name, shape, **arguments):
    configured = configure(
        get_method("task_arithmetic_sb"), base=True, models=1, semantics=None, seed=0,
        parameters={"weight": 1.0, "matrices": "all", **arguments},
    )  # fmt: skip
    layout = Layout(shape, (4,), ((0, 1),), 0)
    part = torch.empty(layout.part_shape(0), device="meta")
    return ShardJob(configured.method, configured.group(name, shape), Inputs(part, (part,)), part, layout)


def test_large_tensors_are_dealt_one_at_a_time_and_small_ones_together():
    large = [job(f"large{i}", (4000, 1500 + i)) for i in range(7)]
    small = [job(f"small{i}", (30, 20)) for i in range(9)]
    turns = dealing.turns([*small, *large], 4)
    assert sorted(j.group.name for turn in turns for hand in turn for j in hand) == sorted(
        j.group.name for j in [*small, *large]
    )
    assert len(turns) <= 3  # of the larger ones, a rank has two; the small ones go to the fourth, together
    for turn in turns:
        assert len(turn) == 4
        for hand in turn:
            assert len(hand) <= 1 or sum(j.whole_bytes for j in hand) <= jobs.WINDOW_BYTES
    assert dealing.turns([], 4) == []


@dataclass
class Limit:
    shape: tuple
    arguments: dict
    together: bool


@pytest.mark.parametrize(
    "case",
    [
        Limit((128256, 8192), {}, True),
        Limit((8192, 28672), {}, False),  # fits one rank
        Limit((28672, 128256), {}, False),  # cut along its shorter side
        Limit((128256, 8192), {"null_space": "reference"}, False),
        Limit((128256, 8192), {"splitting": "qkv"}, False),
        Limit((128256, 8192), {"beta": 1.0}, False),  # nothing is boosted
    ],
    ids=str,
)
def test_the_rule_by_which_a_matrix_is_merged_together(case):
    assert job("lm_head.weight", case.shape, **case.arguments).together == case.together
