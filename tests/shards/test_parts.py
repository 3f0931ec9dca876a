"""What a step does to the parts of a tensor that the ranks of a mesh hold: no ranks are started."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from fastmerge import kernels
from fastmerge.kernels import keep_all, keep_masked, keep_random, keep_top
from fastmerge.steps.apply import ElementwiseMerge, SparseMerge
from fastmerge.steps.inputs import Inputs
from fastmerge.steps.shards import Layout
from fastmerge.steps.shards import local as parts
from fastmerge.steps.shards.local import apply_to_part
from fastmerge.steps.shards.runs import Runs
from fastmerge.steps.source import Chunk

SHAPES = [(7,), (5, 3), (1, 9), (12, 8), (6, 33), (3, 4, 5)]
MESHES = [(3,), (2, 2)]
KEY = 0x9E3779B97F4A7C15


def inputs_of(shape, generator):
    base, *tuned = (torch.randint(-4, 5, shape, generator=generator).float() for _ in range(4))
    return Inputs(base, tuple(tuned))


def steps_of(inputs, generator):
    """Rules by the global index of an element: random numbers, equal magnitudes, stored masks."""
    numel = inputs.base.numel()
    boundaries = kernels.select_boundaries(inputs.tensors, inputs.base, [[max(1, numel // 2)]] * 3)
    random = [keep_random(KEY, k, 2**31) for k in range(3)]
    mixed = SparseMerge([0.5, 0.7, -0.3], [random[0], keep_top(boundaries[1][0]), random[2]], vote="weighted")
    words = torch.randint(-(2**31), 2**31, (kernels.mask_words(numel),), generator=generator).int()
    masked = SparseMerge([0.5, 0.7, -0.3], [keep_masked(words), random[1], keep_all()])
    changed = ElementwiseMerge([1.0, 1.0, 0.5], lambda deltas, merged: merged + 0.25 * deltas[2], mixed)
    return [mixed, masked, changed]


def parts_of(layout, inputs):
    def part(tensor):
        held = tensor.new_empty(layout.part_shape(layout.here))
        for block in layout.blocks(layout.here):
            held[block.part] = tensor[block.whole]
        return held

    return inputs.map(part)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_part_is_that_of_the_whole(shape, mesh, generator):
    inputs = inputs_of(shape, generator)
    choices = [None, *((dim, pieces) for dim in range(len(shape)) for pieces in (1, 2))]
    for step in steps_of(inputs, generator):
        whole = torch.full(shape, torch.nan)
        step(whole, Chunk.of(inputs))
        for splits, here in product(product(choices, repeat=len(mesh)), range(torch.Size(mesh).numel())):
            layout = Layout(shape, mesh, splits, here)
            local = parts_of(layout, inputs)
            out = torch.full_like(local.base, torch.nan)
            apply_to_part(step, layout.runs, out, local)
            assert torch.equal(out, parts_of(layout, Inputs(None, (whole,))).tensors[0]), (splits, here)


@pytest.mark.parametrize(
    ("mesh", "splits"),
    [
        ((4,), ((1, 1),)),
        ((2, 2), ((0, 1), (1, 1))),
        ((2, 2), (None, (1, 1))),
        ((2, 2), ((1, 2), (1, 1))),  # FSDP and tensor parallel of the same dimension: of one range
        ((2,), ((0, 2),)),  # two of one length
    ],
)
def test_columns_are_merged_in_one_call(mesh, splits, generator, monkeypatch):
    """However many rows there are."""
    inputs = inputs_of((300, 24), generator)
    step = steps_of(inputs, generator)[0]
    jobs = []
    one, many = kernels.sparse_merge, kernels.sparse_merge_many
    monkeypatch.setattr(kernels, "sparse_merge", lambda *given, **named: (jobs.append(1), one(*given, **named)))
    monkeypatch.setattr(kernels, "sparse_merge_many", lambda given: (jobs.append(len(given)), many(given)))
    for here in range(torch.Size(mesh).numel()):
        layout = Layout((300, 24), mesh, splits, here)
        local = parts_of(layout, inputs)
        jobs.clear()
        apply_to_part(step, layout.runs, torch.empty_like(local.base), local)
        assert jobs == [1]


@pytest.mark.parametrize("at_once", [3000, 1 << 20])
@pytest.mark.parametrize(("mesh", "splits"), [((2,), ((1, 2),)), ((3,), ((1, 3),)), ((2, 2), ((1, 3), (1, 2)))])
def test_columns_of_several_widths_are_put_together(mesh, splits, at_once, generator, monkeypatch):
    """Of a strided shard whose pieces do not divide the rows: some calls for all rows, not one for every 64 runs."""
    monkeypatch.setattr(parts, "AT_ONCE", at_once)
    shape = (140, 25)
    inputs = inputs_of(shape, generator)
    calls = []
    one = kernels.sparse_merge
    monkeypatch.setattr(kernels, "sparse_merge", lambda *given, **named: (calls.append(1), one(*given, **named)))
    seen = 0
    for step in steps_of(inputs, generator):
        whole = torch.full(shape, torch.nan)
        step(whole, Chunk.of(inputs))
        for here in range(torch.Size(mesh).numel()):
            layout = Layout(shape, mesh, splits, here)
            seen += layout.runs.columns is not None and len(layout.runs.alike) > parts.PIECES
            local = parts_of(layout, inputs)
            calls.clear()
            apply_to_part(step, layout.runs, local.base, local)  # into an input
            assert torch.equal(local.base, parts_of(layout, Inputs(None, (whole,))).tensors[0]), here
            if (
                at_once > 3000
                and isinstance(step, SparseMerge)
                and not any(keep.mask is not None for keep in step.keeps)
            ):
                assert len(calls) <= 8
    assert seen


def test_runs_that_do_not_repeat_are_no_columns():
    runs = Layout((200, 25), (2,), ((1, 2),), 0).runs
    columns = runs.columns
    assert (columns.each, columns.rows, columns.width) == (2, 199, 13)
    for place in (2, 200, len(runs.starts) - 2):
        starts = runs.starts.copy()
        starts[place] += 1
        assert Runs(starts, runs.stops).columns is None
    assert Layout((3, 25), (2,), ((1, 2),), 0).runs.columns is None
    assert Runs(runs.starts[:0], runs.stops[:0]).columns is None
