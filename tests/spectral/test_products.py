"""The polynomial iteration and its products in reduced precision, emulated on the CPU term by term."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import split_pieces
import torch
from deltas import KINDS, make_delta, relative_error
from split_pieces import SPLIT

from fastmerge.kernels.spectral._polar import MORE, SHRINK, SQUARE, TALL, polar_factor
from fastmerge.kernels.spectral._products import FLOAT32
from fastmerge.kernels.spectral._schedule import minimax, schedule


def polar(delta, products):
    x = delta[None] / (1.01 * torch.linalg.svdvals(delta)[0])
    return polar_factor(products.operand(x), products.gram(x), products)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(256, 256), (512, 192)], ids=str)
def test_split_float16_iteration_is_within_twice_the_error_of_float32(kind, shape, generator):
    delta = make_delta(kind, *shape, generator)
    u, s, vh = torch.linalg.svd(delta.double(), full_matrices=False)
    if s[-1] < 1e-5 * s[0]:
        pytest.skip("the smallest singular value of this draw is below what float32 resolves")
    errors = {}
    for products in (FLOAT32, SPLIT):
        found = polar(delta, products)
        assert found.nullity == [0]
        errors[products] = relative_error(found.factor.whole[0], u @ vh)
    assert errors[SPLIT] <= 2 * errors[FLOAT32]


@pytest.mark.parametrize("chunk", [64, 1000, 4096])
def test_split_products(chunk, generator):
    a = torch.randn(2, 100, 300, generator=generator) * 1e-3
    b = torch.randn(2, 300, 50, generator=generator) * 1e5
    exact = a.double() @ b.double()
    split = replace(SPLIT, chunk=chunk)
    plus = torch.randn(2, 100, 50, generator=generator) * 1e3
    assert relative_error(split.multiply(split.operand(a), split.operand(b)), exact) < 5e-7
    assert relative_error(split.multiply(split.operand(a), split.operand(b), 1.0, 0.5, plus), exact + plus / 2) < 5e-7
    gram = split.gram(split.operand(a))
    assert torch.equal(gram, gram.mT)
    assert relative_error(gram, a.double().mT @ a.double()) < 5e-7
    # Of two matrices that commute.
    cube = split.multiply(gram, split.gram(gram), 2.0, -1.0, gram, symmetric=True)
    assert torch.equal(cube, cube.mT)
    wide = gram.double()
    assert relative_error(cube, 2 * wide @ wide @ wide - wide) < 5e-6


def truncating(a, b):
    """Accumulate as tensor cores are known to: 16 terms at a time, exactly, each sum rounded towards zero."""
    acc = torch.zeros(())
    for start in range(0, a.shape[-1], 16):
        part = slice(start, start + 16)
        acc = toward_zero(acc.double() + a[..., part].double() @ b[..., part, :].double())
    return acc


def toward_zero(x):
    rounded = x.float()
    return torch.where(rounded.double().abs() > x.abs(), rounded.nextafter(torch.zeros(())), rounded)


def test_promotion_keeps_a_truncating_accumulator_near_float32(generator, monkeypatch):
    delta = make_delta("bfloat16_difference", 4096, 16, generator)
    u, _, vh = torch.linalg.svd(delta.double(), full_matrices=False)

    def error(products):
        return relative_error(polar(delta, products).factor.whole[0], u @ vh)

    plain = error(FLOAT32)
    monkeypatch.setattr(split_pieces, "summed", truncating)
    promoted = error(SPLIT)
    # 3 x 16 steps lose half a unit, 2^-24, each; the factor inherits half of what the Gram matrix loses.
    assert promoted <= plain + 24 * 2**-24
    assert error(replace(SPLIT, chunk=4096)) > 2 * promoted


def test_promotion_serves_three_products_in_one_accumulator(generator, monkeypatch):
    monkeypatch.setattr(split_pieces, "summed", truncating)
    x = make_delta("bfloat16_difference", 8192, 24, generator)[None]
    exact = x.double().mT @ x.double()
    errors = [relative_error(replace(SPLIT, chunk=chunk).gram(x), exact) for chunk in (SPLIT.chunk, 8192)]
    # Half a unit in the last place, 2^-24, is lost in each of the steps between promotions.
    assert errors[0] < 3 * 16 * 2**-24
    assert errors[1] > 5 * errors[0]


@pytest.mark.parametrize("degree", [2, 4])
@pytest.mark.parametrize("low", [0.5, 0.05, 1e-3])
def test_minimax_polynomial_alternates(low, degree):
    step, largest = minimax(low, 1.0, degree)
    x = torch.linspace(low, 1, 100001, dtype=torch.float64)
    error = 1 - x * step.gain(x * x)
    assert largest == pytest.approx(float(error.abs().max()), rel=1e-6)
    # As often as nothing better does.
    signs = error[error.abs() > 0.999 * largest].sign()
    assert int((signs[1:] != signs[:-1]).sum()) == degree + 1
    assert error[0] == pytest.approx(float(largest), rel=1e-6)
    assert error[-1] == pytest.approx(-float(largest), rel=1e-6)
    assert error.min() == pytest.approx(-float(largest), rel=1e-6)


@pytest.mark.parametrize("lower, groups", [SQUARE, TALL, MORE, (0.1, ((4,),) * 3)])
def test_schedule_brings_its_interval_to_one(lower, groups):
    x = torch.logspace(math.log10(lower), 0, 10001, dtype=torch.float64)
    plan = schedule(lower, groups)
    smallest = x.new_tensor(1e-9)
    for step in sum(plan.groups, ()):
        x, smallest = (v * step.gain(v * v) for v in (x, smallest))
    assert plan.low - 1e-12 <= x.min() and x.max() <= plan.high + 1e-12
    assert smallest == pytest.approx(1e-9 * plan.gain, rel=1e-6)
    # What was above it before an extension fits into it again.
    assert plan.high < SHRINK
    assert (x * plan.last.gain(x * x) - 1).abs().max() <= 1.001 * plan.error + 1e-12 < 2e-7
