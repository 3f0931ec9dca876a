"""Every operation, on every backend and instruction set that runs here, returns the bits of the reference."""

import random

import pytest
import torch
from kernel_cases import CASES, SIZES, Draw, same_bits, variants

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


@pytest.mark.parametrize("name", ["weighted_sum", "sparse_merge"])
def test_zero_dimensions(name):
    from fastmerge import kernels

    base, tensor, out = torch.tensor(1.0), torch.tensor(3.0), torch.tensor(float("nan"))
    for variant in variants():
        with variant.active():
            if name == "weighted_sum":
                kernels.weighted_sum(out, [base, tensor], [0.5, 0.5])
            else:
                kernels.sparse_merge(out, base, [tensor], factors=[0.5], keeps=[kernels.keep_all()])
        assert out.shape == () and out.item() == 2.0
