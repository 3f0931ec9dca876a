"""Rows as vectors: one answer however a tensor is cut, and the right one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sources import Chunked, run_sharded

from fastmerge.kernels import GRID
from fastmerge.methods import Group, get_method
from fastmerge.steps.driver import merge_source
from fastmerge.steps.rows import RowGram, RowMerge, Rows
from fastmerge.steps.source import Chunk, Resident

# Rows within a chunk of the grid, across several, of a whole number of them; and one that covers all.
STREAMED = [(16, 4096), (5, 3 * 8192), (3, 2 * GRID), (12, 7, 256), (4 * GRID,)]
WHOLE = [(7, 129), (3, 1031), (77,), (), (0,), (3, 0), (2, 3, 5)]


def inputs(shape, generator, base=True):
    tensors = [0.02 * torch.randn(shape, generator=generator) for _ in range(3)]
    return (torch.randn(shape, generator=generator).bfloat16() if base else None), tensors


@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize("shape", STREAMED + WHOLE)
@pytest.mark.parametrize("dim", [-1, 0])
def test_gram_of_rows(shape, dim, base, generator):
    origin, tensors = inputs(shape, generator, base)
    rows = Rows.along(shape, dim)
    answer = torch.from_numpy(RowGram(rows).run(Resident(origin, tensors)))
    deltas = [(t if origin is None else t - origin.float()).double() for t in tensors]
    vectors = torch.stack(
        [d.reshape(rows.outer, rows.length, rows.inner).movedim(1, 2).flatten(0, 1) for d in deltas], 1
    )
    bound = (rows.length + 1) * 2**-53 * (vectors.abs() @ vectors.abs().mT)
    assert answer.shape == (rows.count, 3, 3) and torch.equal(answer, answer.mT)
    assert ((answer - vectors @ vectors.mT).abs() <= bound).all()


@pytest.mark.parametrize("shape", STREAMED)
def test_gram_of_rows_that_are_cut(shape, generator):
    base, tensors = inputs(shape, generator)
    survey = RowGram(Rows.along(shape, -1))
    assert survey.rows.scratch_bytes(3) is None
    expected = survey.run(Resident(base, tensors))
    for cells in (1, 2):
        assert np.array_equal(survey.run(Chunked(base, tensors, cells)), expected)
    assert all(np.array_equal(answer, expected) for answer in run_sharded(base, tensors, 1, survey.run))


@pytest.mark.parametrize("shape", [*WHOLE[:3], (5, 2, 33)])
def test_what_cannot_be_cut_says_so(shape):
    for dim in (0, -1):
        assert Rows.along(shape, dim).scratch_bytes(3) > 0
    assert Rows.along((16, 4096), 0).scratch_bytes(3) > 0


@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize("shape", STREAMED + WHOLE)
@pytest.mark.parametrize("dim", [-1, 0])
def test_merge_of_rows(shape, dim, base, generator):
    origin, tensors = inputs(shape, generator, base)
    rows = Rows.along(shape, dim)
    coefficients = torch.randn(rows.count, 3, generator=generator)
    step = RowMerge(rows, coefficients.numpy(), scale=0.5)
    spread = [
        c.view(rows.outer, 1, rows.inner).expand(-1, rows.length, -1).reshape(shape) for c in coefficients.unbind(1)
    ]
    deltas = tensors if origin is None else [t - origin.float() for t in tensors]
    expected = ((deltas[0] * spread[0] + deltas[1] * spread[1]) + deltas[2] * spread[2]) * 0.5
    expected = expected if origin is None else origin.float() + expected
    out = torch.full(shape, float("nan"), dtype=torch.bfloat16)
    step(out, Chunk(origin, tuple(tensors)))
    assert torch.equal(out, expected.bfloat16())
    if shape in STREAMED and dim == -1:
        for chunk in Chunked(origin, tensors, 1).chunks():
            part = torch.full(chunk.tensors[0].shape, float("nan"))
            step(part, chunk)
            assert torch.equal(part, expected.flatten()[chunk.offset : chunk.offset + part.numel()])


def test_gains_are_those_of_the_largest_coefficients():
    step = RowMerge(Rows(2, 4, 1), np.array([[1.0, -3.0], [2.0, 0.5]], np.float32), scale=-2.0)
    assert step.gains == [4.0, 6.0]
    assert RowMerge(Rows(0, 4, 1), np.zeros((0, 2), np.float32)).gains == [0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("model_stock", {"filter_wise": True}),
        ("nuslerp", {"weight": (0.3, 0.7), "nuslerp_flatten": False, "nuslerp_row_wise": False}),
    ],
)
def test_methods_on_rows_stream(name, values, generator):
    base, tensors = inputs((16, 4096), generator)
    method, group = get_method(name), Group("w", (16, 4096), 2, values)
    assert method.scratch_bytes(group) is None
    results = [torch.full((16, 4096), float("nan")) for _ in range(2)]
    merge_source(method, group, Resident(base, tensors[:2]), results[0])
    merge_source(method, group, Chunked(base, tensors[:2], 1), results[1])
    assert torch.equal(*results) and results[0].isfinite().all()
