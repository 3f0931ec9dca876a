"""Many jobs in one call on the CPU: the results of single calls of the reference, for any sizes and threads."""

from __future__ import annotations

import random

import pytest
import torch
from kernel_cases import Draw, Variant, blank, same_bits

from fastmerge import kernels
from fastmerge.kernels import MergeJob, SelectJob, SumJob, _native

pytestmark = pytest.mark.compiled
THREADS = (1, 2, 3)


@pytest.fixture
def draws(generator):
    """Inputs of every size: empty, tiny, and larger than what one task takes."""
    rng = random.Random(generator.initial_seed())
    sizes = [0, 1, 300_000, 7, *(rng.randint(0, 900) for _ in range(60)), 70_000, 0]
    return [Draw(rng, generator, numel, rng.randint(1, 5)) for numel in sizes]


def check_outputs(run, jobs):
    """Run new jobs on any number of threads, and by the reference."""
    expected = jobs()
    run(expected, backend="reference")
    for threads in THREADS:
        found = jobs()
        with Variant("cpu", threads=threads).active():
            run(found)
        assert all(same_bits(a.out, b.out) for a, b in zip(found, expected, strict=True))


def test_weighted_sums(draws):
    def jobs():
        return [SumJob(blank(d.numel, dtype=d.out_dtype), d.tensors, d.weights) for d in draws]

    check_outputs(kernels.weighted_sum_many, jobs)


def test_sparse_merges(draws):
    rules = [
        (
            d.keeps(),
            d.random.choice(["none", "weighted", "sum", "count"]),
            d.random.choice(["none", "weights", "count"]),
        )
        for d in draws
    ]

    def job(d, keeps, vote, divide):
        out = blank(d.numel, dtype=d.out_dtype)
        return MergeJob(out, d.base, d.tensors, d.weights, keeps, None, vote, divide, 0.7, d.offset)

    check_outputs(kernels.sparse_merge_many, lambda: [job(d, *rule) for d, rule in zip(draws, rules, strict=True)])


def test_selections(draws):
    ranks = [[[d.random.randint(0, d.numel) for _ in range(2)] for _ in d.tensors] for d in draws]
    jobs = [SelectJob(d.tensors, d.base, wanted) for d, wanted in zip(draws, ranks, strict=True)]
    expected = kernels.select_boundaries_many(jobs, backend="reference")
    for threads in THREADS:
        with Variant("cpu", threads=threads).active():
            assert kernels.select_boundaries_many(jobs) == expected


def test_samples_that_mislead_one_of_many(generator):
    """Runs of equal values are more alike than the sample assumes; histograms find the ranks after all others are."""
    extension = _native.cpu_extension()
    before, ranks = extension.select_fallbacks(), list(range(20_000, 180_000, 30_011))
    with Variant("cpu", threads=2).active():
        for _ in range(200):
            tensor = torch.randn(400, generator=generator).repeat_interleave(500)
            jobs = [SelectJob([tensor[:size]], None, [wanted]) for size, wanted in ((9, [3]), (200_000, ranks))]
            found = kernels.select_boundaries_many([*jobs, jobs[0]])
            assert found == kernels.select_boundaries_many([*jobs, jobs[0]], backend="reference")
            if extension.select_fallbacks() > before:
                return
    pytest.fail("no sample was misled")
