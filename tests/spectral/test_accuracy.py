"""Subspace boosting against a float64 SVD on realistic deltas: as near as the float32 SVD, and the same k."""

from __future__ import annotations

import pytest
import torch
from deltas import KINDS, NULL, STEEP, boost_oracle, make_delta, relative_error
from split_pieces import SPLIT

from fastmerge.kernels.spectral import subspace_boost
from fastmerge.kernels.spectral._by_products import by_products
from fastmerge.kernels.spectral._rules import Boost

SHAPES = [(128, 128), (384, 192), (512, 128), (96, 224)]
# ``split16``: the products of a GPU, which ``accurate`` replaces by float32 on a CPU, emulated.
ROUTES = ["svd", "exact", "accurate", "split16"]


def boost(delta, beta, route):
    if route != "split16":
        return subspace_boost(delta, beta, method=route)
    tall = delta if delta.shape[-2] >= delta.shape[-1] else delta.mT
    stack = tall.reshape(-1, *tall.shape[-2:])
    result, infos, accepted = by_products(stack, [Boost(beta)] * len(stack), products=SPLIT)
    assert all(accepted), infos
    return result.reshape(tall.shape) if tall is delta else result.reshape(tall.shape).mT, infos


def draw(kind, m, n, generator):
    """A delta of which the rounding of the input does not decide whether a singular value counts as zero."""
    while True:
        delta = make_delta(kind, m, n, generator)
        s = torch.linalg.svdvals(delta.double())
        if not bool(((s > NULL / 4 * s[0]) & (s < 4 * NULL * s[0])).any()):
            return delta


def check(delta, beta, routes):
    """Relative Frobenius error at most 1.5 times that of the float32 SVD, plus 1e-6, and the same k."""
    exact, k = boost_oracle(delta, beta)
    peer = relative_error(boost_oracle(delta, beta, torch.float32)[0], exact)
    for route in routes:
        result, (info,) = boost(delta, beta, route)
        assert info.k == k or info.margin < 1e-6, route
        assert relative_error(result, exact) <= 1.5 * peer + 1e-6, info


@pytest.mark.parametrize("kind", KINDS + STEEP)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_that_of_a_float32_svd(kind, shape, generator):
    delta = draw(kind, *shape, generator)
    for beta in (0.01, 0.2):
        check(delta, beta, ROUTES)


@pytest.mark.parametrize(
    "kind, shape",
    [
        ("bfloat16_difference", (512, 512)),
        ("lora_sum", (512, 512)),
        ("power_one", (512, 512)),
        ("low_rank_noise", (704, 512)),
        ("gaussian", (704, 512)),
        ("power_hard", (704, 512)),
    ],
    ids=str,
)
def test_error_of_the_products_of_a_gpu_at_512_columns(kind, shape, generator):
    check(draw(kind, *shape, generator), 0.2, ["split16"])


@pytest.mark.parametrize("least", [2e-6, 1e-6])
def test_one_direction_is_nearly_null(least, generator):
    u, s, vh = torch.linalg.svd(make_delta("bfloat16_difference", 96, 96, generator).double())
    s[-1] = least * s[0]
    check(((u * s) @ vh).float(), 0.2, ["accurate", "split16"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, shape, beta, routes",
    [
        ("bfloat16_difference", (1536, 1536), 0.1, ["accurate"]),
        ("low_rank_noise", (2048, 1024), 0.01, ["accurate"]),
        ("bfloat16_difference", (1024, 1024), 0.2, ROUTES),
        ("lora_sum", (2048, 512), 0.2, ROUTES),
        ("power_half", (1024, 512), 0.1, ROUTES),
        ("power_one", (512, 2048), 0.01, ROUTES),
        ("gaussian", (1024, 512), 0.1, ["svd", "exact", "accurate"]),
    ],
    ids=str,
)
def test_error_is_that_of_a_float32_svd_at_size(kind, shape, beta, routes, generator):
    check(make_delta(kind, *shape, generator), beta, routes)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.8, 0.95, 1.0])
def test_every_beta(beta, generator):
    check(make_delta("bfloat16_difference", 320, 192, generator), beta, ["svd", "accurate", "split16"])


@pytest.mark.parametrize("route", ["accurate", "split16"])
@pytest.mark.parametrize("beta", [0.05, 0.6])
def test_batches(beta, route, generator):
    kinds = ("bfloat16_difference", "lora_sum", "power_half", "gaussian")
    deltas = torch.stack([make_delta(kind, 256, 96, generator) for kind in kinds])
    # Of experts, some have learned a hundred times as much as others.
    deltas *= torch.tensor([1.0, 0.01, 1.0, 100.0]).view(-1, 1, 1)
    results, infos = boost(deltas, beta, route)
    for delta, result, info in zip(deltas, results, infos, strict=True):
        exact, k = boost_oracle(delta, beta)
        peer = relative_error(boost_oracle(delta, beta, torch.float32)[0], exact)
        assert info.method == "accurate"
        assert info.k == k or info.margin < 1e-6
        assert relative_error(result, exact) <= 1.5 * peer + 1e-6, info


def test_only_what_fails_its_certificate_leaves_the_batch(generator):
    low_rank = torch.randn(128, 6, generator=generator) @ torch.randn(6, 64, generator=generator)
    full = [make_delta(kind, 128, 64, generator) for kind in ("gaussian", "power_half")]
    deltas = torch.stack([full[0], low_rank, torch.zeros(128, 64), full[1]])
    results, infos = subspace_boost(deltas, 0.1, method="accurate")
    assert [info.method for info in infos][::3] == ["accurate", "accurate"]
    assert infos[1].method in ("exact", "svd64") and infos[1].nullity == 58
    assert infos[2].method == "zero" and not results[2].any()
    for index in (0, 1, 3):
        exact, k = boost_oracle(deltas[index], 0.1)
        assert infos[index].k == k
        assert relative_error(results[index], exact) < 1e-5
