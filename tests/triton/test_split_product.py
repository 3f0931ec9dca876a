"""Split products in Triton, and in Gluon on Hopper: near the float64 product, and boosting by them."""

from __future__ import annotations

import importlib

import pytest
import torch
from deltas import boost_oracle, make_delta, relative_error
from hopper import Hopper

from fastmerge.kernels.spectral._by_products import by_products
from fastmerge.kernels.spectral._products import Products
from fastmerge.kernels.spectral._rules import Boost

split_product = pytest.importorskip("fastmerge.kernels._triton.split_product")
PRODUCTS = Products(split_product)


@pytest.fixture(params=["triton", "hopper"])
def scale(request, device, monkeypatch):
    """What sizes are multiplied by on a GPU; the interpreter, slow in products, has smaller tiles as well."""
    if device.type == "cuda":
        if request.param == "triton":
            monkeypatch.setattr(split_product, "on_hopper", lambda device: False)
        elif not split_product.on_hopper(device):
            pytest.skip("the GPU is no Hopper")
        return 8
    monkeypatch.setattr(split_product, "TILE", 32)
    if request.param == "hopper":
        module = importlib.import_module("fastmerge.kernels._triton.hopper_product")
        for name, value in {"TILE": 32, "TERMS": 16, **Hopper().names(module)}.items():
            monkeypatch.setattr(module, name, value, raising=False)
        monkeypatch.setattr(split_product, "on_hopper", lambda device: True)
    return 1


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 33, 75, 12)], ids=str)
def test_products(device, scale, generator, shape):
    # Several promotions also where the interpreter's matrices are small.
    bound, products = 5e-7, Products(split_product, 32 if device.type == "cpu" else 64)
    batch, p, q, r = shape[0], *(scale * size for size in shape[1:])
    a = 1e-3 * torch.randn(batch, p, q, generator=generator)
    b = 1e5 * torch.randn(batch, q, r, generator=generator) * torch.tensor([1.0, 1e-9, 0.0])[:batch, None, None]
    plus = torch.randn(batch, p, r, generator=generator)
    left, right = products.operand(a.to(device)), products.operand(b.to(device))
    exact, size = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    result = products.multiply(left, right)
    assert within(result, exact, bound * size)
    assert within(
        products.multiply(left, right, 1.0, -0.5, plus.to(device)), exact - plus / 2, bound * (size + plus.abs())
    )
    assert within(products.multiply(right.mT, left.mT), exact.mT, bound * size.mT)
    # Of a transposed view.
    assert within(products.multiply(products.operand(a.mT.contiguous().to(device).mT), right), exact, bound * size)


def within(result, exact, bound):
    """Each matrix of the batch is as near in the Frobenius norm, whatever its size."""
    distance = torch.linalg.matrix_norm(result.cpu().double() - exact)
    return bool((distance <= torch.linalg.matrix_norm(bound.double())).all())


@pytest.mark.parametrize("shape", [(1, 20, 40), (2, 18, 10)], ids=str)
def test_symmetric_products(device, scale, generator, shape):
    products = PRODUCTS
    x = torch.randn(shape[0], scale * shape[1], scale * shape[2], generator=generator)
    gram = products.gram(products.operand(x.to(device)))
    exact = x.double().mT @ x.double()
    assert torch.equal(gram, gram.mT)
    assert relative_error(gram.cpu(), exact) < 5e-7
    operand = products.operand(gram)
    step = products.multiply(operand, operand, 2.0, -3.0, gram, symmetric=True)
    assert torch.equal(step, step.mT)
    # The two parts may cancel, as may the sums of each: the bound is of their sizes.
    given = gram.cpu().double()
    assert within(step, 2 * given @ given - 3 * given, 5e-7 * (2 * given.abs() @ given.abs() + 3 * given.abs()))


@pytest.mark.parametrize("scale", ["triton"], indirect=True)
def test_boosting(device, scale, generator):
    delta = make_delta("power_half", scale * 30, scale * 12, generator)
    exact, k = boost_oracle(delta, 0.3)
    result, (info,), (accepted,) = by_products(delta[None].to(device), [Boost(0.3)], products=PRODUCTS)
    assert accepted and info.k == k
    assert relative_error(result[0].cpu(), exact) < 5e-6


@pytest.mark.parametrize(("columns", "symmetric"), [(34, True), (10, False)])
def test_a_product_finds_its_largest_element(device, scale, generator, columns, symmetric):
    x = torch.randn(2, 8, scale * columns, generator=generator).to(device)
    x[1] *= 1e-20
    plus = torch.eye(scale * columns, device=device).expand(2, -1, -1).contiguous() if symmetric else None
    given = x.mT, x, 1.0, -2.0, plus
    operand = PRODUCTS.multiplied(*given, symmetric=symmetric)
    expected = PRODUCTS.operand(PRODUCTS.multiply(*given, symmetric=symmetric))
    assert torch.equal(operand.whole, expected.whole) and torch.equal(operand.unit, expected.unit)
    assert all(map(torch.equal, operand.pieces, expected.pieces))
    assert (operand.unit[1] < operand.unit[0]).all() or symmetric


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(device, scale, value):
    x = torch.ones(1, 8, 10, device=device)
    x[0, 3, 2] = value
    operand = PRODUCTS.multiplied(x.mT, x)
    assert torch.equal(operand.unit, PRODUCTS.operand(PRODUCTS.multiply(x.mT, x)).unit)
    result = PRODUCTS.multiply(operand, operand)
    assert not result.isfinite().any()
