"""Every operation, on every backend and instruction set that runs here, returns the bits of the reference."""

import random

import pytest
import torch
from kernel_cases import CASES, SIZES, Draw, same_bits, variants

from fastmerge import kernels
from fastmerge.kernels import OPERATIONS, use_backend


def test_every_operation_is_in_the_matrix():
    assert set(CASES) == set(OPERATIONS)


def test_the_matrix_covers_every_instruction_set():
    native = pytest.importorskip("fastmerge._C")
    assert set(native.available_isas()) <= {variant.isa for variant in variants()}


@pytest.mark.parametrize("name", sorted(OPERATIONS))
@pytest.mark.parametrize("numel", SIZES)
def test_backends_agree(name, numel, generator):
    rng = random.Random(generator.initial_seed())
    # The large sizes are slow in the reference; the counts of models are sampled there.
    counts = range(1, 9) if numel < 2000 else rng.sample(range(1, 5), 2)
    for count in counts:
        run = CASES[name](Draw(rng, generator, numel, count))
        with use_backend("reference"):
            expected = run()
        for variant in variants():
            with variant.active():
                found = run()
            where = f"{variant.label}, {numel} elements, {count} tensors"
            assert same_bits(found, expected) if isinstance(found, torch.Tensor) else found == expected, where


@pytest.mark.parametrize("count", [64, 65, 130])
def test_a_sum_of_many_tensors_is_added_up_in_order(count, generator):
    """As a loop in torch does it: a soup of many checkpoints."""
    tensors = [torch.randn(515, generator=generator).bfloat16() for _ in range(count)]
    weights = torch.rand(count, generator=generator).tolist()
    acc = tensors[0].float() * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        acc += tensor.float() * weight
    for variant in variants():
        with variant.active():
            out, wide = torch.full((515,), torch.nan, dtype=torch.bfloat16), torch.full((515,), torch.nan)
            kernels.weighted_sum_many([kernels.SumJob(out, tensors, weights), kernels.SumJob(wide, tensors, weights)])
        assert torch.equal(out, acc.bfloat16()) and torch.equal(wide, acc), variant.label


@pytest.mark.parametrize("name", ["weighted_sum", "sparse_merge"])
def test_zero_dimensions(name):
    base, tensor, out = torch.tensor(1.0), torch.tensor(3.0), torch.tensor(float("nan"))
    for variant in variants():
        with variant.active():
            if name == "weighted_sum":
                kernels.weighted_sum(out, [base, tensor], [0.5, 0.5])
            else:
                kernels.sparse_merge(out, base, [tensor], factors=[0.5], keeps=[kernels.keep_all()])
        assert out.shape == () and out.item() == 2.0
