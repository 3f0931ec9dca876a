"""Every operation of the CUDA backend returns the bits of the reference, on inputs of every kind and odd sizes."""

from __future__ import annotations

import random

import pytest
from kernel_cases import CASES, SIZES, Draw, same_bits
from torch import Tensor

from fastmerge.kernels import OPERATIONS, use_backend


@pytest.mark.parametrize("name", sorted(name for name, op in OPERATIONS.items() if "cuda" in op.implementations))
@pytest.mark.parametrize("numel", SIZES)
def test_agrees_with_the_reference(device, name, numel, generator):
    rng = random.Random(generator.initial_seed())
    counts = range(1, 7) if numel < 2000 else rng.sample(range(1, 6), 1)
    for count in counts:
        inputs = Draw(rng, generator, numel, count)
        run = CASES[name](inputs)
        with use_backend("reference"):
            expected = run()
        with use_backend("cuda"):
            found = run()
        where = f"{numel} elements, {count} tensors"
        assert same_bits(found, expected) if isinstance(found, Tensor) else found == expected, where
