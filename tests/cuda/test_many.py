"""Many jobs in few launches: the bits of single calls on every backend, and errors that name the job."""

from __future__ import annotations

import random

import pytest
import torch
from kernel_cases import Draw, blank, same_bits

from fastmerge import kernels
from fastmerge.kernels import MergeJob, SumJob, _cuda


def _inputs(generator, count: int) -> tuple[random.Random, list[Draw]]:
    rng = random.Random(generator.initial_seed())
    sizes = [0, 1, 7, 70_000, 2**16 + 8]
    return rng, [
        Draw(rng, generator, rng.choice(sizes) if k % 50 == 0 else rng.randint(0, 900), rng.randint(1, 6))
        for k in range(count)
    ]


def _sums(inputs: list[Draw], device) -> list[SumJob]:
    return [
        SumJob(blank(i.numel, dtype=i.out_dtype).to(device), [t.to(device) for t in i.tensors], i.weights)
        for i in inputs
    ]


# More jobs than one table takes.
@pytest.mark.parametrize("count", [1, 2, 700])
def test_weighted_sums(device, generator, count):
    _, inputs = _inputs(generator, count)
    expected, found = _sums(inputs, "cpu"), _sums(inputs, device)
    kernels.weighted_sum_many(expected, backend="reference")
    kernels.weighted_sum_many(found, backend="cuda")
    for k in range(count):
        assert same_bits(found[k].out.cpu(), expected[k].out), f"job {k}"


@pytest.mark.parametrize("count", [1, 2, 170])
def test_sparse_merges(device, generator, count):
    rng, inputs = _inputs(generator, count)
    expected, found = [], []
    for i in inputs:
        rest = {
            "factors": i.weights, "keeps": i.keeps(), "scale": 0.7, "offset": i.offset,
            "vote": rng.choice(["none", "weighted", "weighted", "sum", "count"]),
            "divide": rng.choice(["none", "weights", "count"]),
        }  # fmt: skip
        for where, jobs in (("cpu", expected), (device, found)):
            keeps = [k._replace(mask=None if k.mask is None else k.mask.to(where)) for k in rest["keeps"]]
            arrays = i.base.to(where), [t.to(where) for t in i.tensors]
            jobs.append(MergeJob(blank(i.numel, dtype=i.out_dtype).to(where), *arrays, **{**rest, "keeps": keeps}))
    kernels.sparse_merge_many(expected, backend="reference")
    kernels.sparse_merge_many(found, backend="cuda")
    for k in range(count):
        assert same_bits(found[k].out.cpu(), expected[k].out), f"job {k}"


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_backends_without_tables_loop(generator, backend):
    _, inputs = _inputs(generator, 5)
    single, together = _sums(inputs, "cpu"), _sums(inputs, "cpu")
    for job in single:
        kernels.weighted_sum(*job, backend=backend)
    kernels.weighted_sum_many(together, backend=backend)
    assert all(same_bits(a.out, b.out) for a, b in zip(single, together, strict=True))


def test_no_jobs():
    kernels.weighted_sum_many([])
    kernels.sparse_merge_many([])


def test_errors_name_the_job():
    tensor = torch.zeros(3)
    good = SumJob(tensor, [tensor], [1.0])
    with pytest.raises(ValueError, match=r"jobs\[1\]: weights has 2 values; expected 1, one per tensor"):
        kernels.weighted_sum_many([good, good._replace(weights=[1.0, 2.0])])
    merge = MergeJob(tensor, tensor, [tensor], [1.0], [kernels.keep_all()])
    with pytest.raises(ValueError, match=r"jobs\[1\]: offset is -1; expected a non-negative index"):
        kernels.sparse_merge_many([merge, merge._replace(offset=-1)])
    there = tensor.to("meta")
    with pytest.raises(ValueError, match=r"jobs\[1\]: tensors\[0\] is on the device meta"):
        kernels.weighted_sum_many([good, SumJob(there, [there], [1.0])])


@pytest.mark.gpu
def test_in_a_graph(generator):
    """A graph records the launches, with their tables, and replays them on what the tensors hold by then."""
    if _cuda.why_unavailable() is not None or not torch.cuda.is_available():
        pytest.skip("needs a GPU and the extension")
    _, inputs = _inputs(generator, 700)
    jobs = _sums(inputs, "cuda")
    kernels.weighted_sum_many(jobs, backend="cuda")
    expected = [job.out.clone() for job in jobs]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.weighted_sum_many(jobs, backend="cuda")
    for job in jobs:
        job.out.zero_()
    graph.replay()
    assert all(same_bits(job.out.cpu(), out.cpu()) for job, out in zip(jobs, expected, strict=True))
