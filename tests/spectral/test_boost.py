"""Subspace boosting and its relatives: toy spectra, identities, batches, null directions, arguments."""

from __future__ import annotations

import pytest
import torch
from deltas import boost_oracle, make_delta, relative_error

from fastmerge.kernels.spectral import flatten_spectrum, polar, subspace_boost

ROUTES = ["accurate", "exact", "svd"]


@pytest.mark.parametrize("method", ROUTES)
@pytest.mark.parametrize(
    "beta, k, expected",
    [
        (0.0, 0, (8, 8, 8, 8, 8)),
        (0.49, 0, (8, 8, 8, 8, 8)),
        (0.6, 1, (8, 4, 4, 4, 4)),
        (0.8, 2, (8, 4, 2, 2, 2)),
        (0.99, 4, (8, 4, 2, 1, 1)),
    ],
)
def test_toy_spectrum(beta, k, expected, method):
    delta = torch.diag(torch.tensor([8.0, 4, 2, 1, 1]))
    result, (info,) = subspace_boost(delta, beta, method=method)
    tolerance = 1e-5
    assert torch.allclose(result, torch.diag(torch.tensor(expected, dtype=torch.float32)), atol=tolerance)
    assert info.k == k
    assert info.cut == pytest.approx(expected[-1], abs=tolerance)
    assert info.nuclear == pytest.approx(16, abs=16 * tolerance)


@pytest.mark.parametrize("method", ROUTES)
def test_identities(method, generator):
    delta = make_delta("low_rank_noise", 192, 96, generator)
    for beta in (0.01, 0.3):
        boosted = subspace_boost(delta, beta, method=method)[0]
        norm = torch.linalg.matrix_norm(delta.double(), 2)
        assert torch.linalg.matrix_norm(boosted.double(), 2) == pytest.approx(float(norm), rel=1e-5)
        assert relative_error(subspace_boost(boosted, beta, method=method)[0], boosted) < 2e-5
        assert relative_error(subspace_boost(delta.mT, beta, method=method)[0].mT, boosted) < 2e-5
        assert relative_error(subspace_boost(-4 * delta, beta, method=method)[0], -4 * boosted) < 2e-5
        rotation = torch.linalg.qr(torch.randn(192, 192, generator=generator, dtype=torch.float64)).Q
        rotated = subspace_boost((rotation @ delta.double()).float(), beta, method=method)[0]
        assert relative_error(rotated, rotation @ boosted.double()) < 5e-5
        inner = delta.double().mT @ boosted.double()
        assert relative_error(inner.mT, inner) < 1e-5


@pytest.mark.parametrize("method", ROUTES)
def test_boosting_at_beta_zero_is_a_multiple_of_the_flat_spectrum_and_of_the_polar_factor(method, generator):
    delta = make_delta("bfloat16_difference", 160, 160, generator)
    boosted, (info,) = subspace_boost(delta, 0.0, method=method)
    flat, (flat_info,) = flatten_spectrum(delta, method=method)
    factor = polar(delta, method=method)[0]
    s = torch.linalg.svdvals(delta.double())
    assert flat_info.cut == pytest.approx(float(s.mean()), rel=1e-6)
    assert info.cut == pytest.approx(float(s[0]), rel=1e-6)
    assert relative_error(boosted, s[0] * factor.double()) < 1e-5
    assert relative_error(flat, s.mean() * factor.double()) < 1e-5
    assert relative_error(factor.mT @ factor, torch.eye(160)) < 1e-5


@pytest.mark.parametrize("method", ROUTES)
def test_batch_equals_its_matrices_and_says_what_was_done_with_each(method, generator):
    kinds = ("gaussian", "power_one", "low_rank_noise")
    delta = torch.stack([make_delta(kind, 96, 64, generator) for kind in kinds])
    delta = torch.cat([delta, torch.zeros(1, 96, 64)]).reshape(2, 2, 96, 64)
    result, infos = subspace_boost(delta, 0.1, method=method)
    assert result.shape == delta.shape and len(infos) == 4
    assert infos[3].method == "zero" and torch.equal(result[1, 1], torch.zeros(96, 64))
    for index in range(3):
        single, (info,) = subspace_boost(delta.reshape(4, 96, 64)[index], 0.1, method=method)
        assert info.k == infos[index].k
        assert relative_error(result.reshape(4, 96, 64)[index], single) < 1e-5


@pytest.mark.parametrize("method", ["auto", *ROUTES])
def test_null_directions_stay_zero_unless_asked_for(method, generator):
    up = torch.randn(160, 8, generator=generator, dtype=torch.float64)
    down = torch.randn(8, 128, generator=generator, dtype=torch.float64)
    delta = (up @ down).float()
    u, s, vh = torch.linalg.svd(up @ down, full_matrices=False)
    kept, (info,) = subspace_boost(delta, 0.01, method=method)
    assert info.nullity == 120
    assert info.method in ("exact", "svd64")
    assert relative_error(kept, s[0] * u[:, :8] @ vh[:8]) < 1e-5
    filled = subspace_boost(delta, 0.01, method=method, null="reference")[0]
    assert torch.allclose(torch.linalg.svdvals(filled), s[0].float(), rtol=1e-4)
    assert relative_error(u[:, :8].mT @ filled.double(), s[0] * vh[:8]) < 1e-4


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (3, 2), (17, 20), (40, 33)], ids=str)
@pytest.mark.parametrize("method", ROUTES)
def test_small_matrices(shape, method, generator):
    delta = torch.randn(shape, generator=generator)
    exact, k = boost_oracle(delta, 0.4)
    result, (info,) = subspace_boost(delta, 0.4, method=method)
    assert info.k == k
    assert relative_error(result, exact) < 1e-4


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 3, 3)], ids=str)
def test_empty_matrices(shape):
    result, infos = subspace_boost(torch.zeros(shape), 0.1)
    assert result.shape == shape and all(info.method == "zero" for info in infos)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12])
@pytest.mark.parametrize("method", ROUTES)
def test_any_scale(scale, method, generator):
    delta = torch.randn(64, 48, generator=generator)
    expected = subspace_boost(delta, 0.1, method=method)[0]
    result = subspace_boost(scale * delta, 0.1, method=method)[0]
    assert relative_error(result.double() / scale, expected) < 1e-5


@pytest.mark.parametrize("method", ROUTES)
def test_deterministic_and_leaves_the_global_generator_alone(method, generator):
    delta = make_delta("gaussian", 96, 96, generator)
    before = torch.get_rng_state()
    first = subspace_boost(delta, 0.2, method=method)[0]
    assert torch.equal(first, subspace_boost(delta, 0.2, method=method)[0])
    assert torch.equal(before, torch.get_rng_state())


def test_certificates_of_the_polynomial_route(generator):
    delta = make_delta("bfloat16_difference", 256, 128, generator)
    info = subspace_boost(delta, 0.1, method="accurate")[1][0]
    nuclear = float(torch.linalg.svdvals(delta.double()).sum())
    assert info.method == "accurate" and info.iterations <= 12 and info.passes > 0
    assert info.orth < 3e-6 and info.skew < 1e-5
    assert info.nuclear == pytest.approx(nuclear, rel=1e-6)


def test_the_reduced_precision_setting_is_restored(generator):
    before = torch.get_float32_matmul_precision()
    subspace_boost(torch.randn(8, 8, generator=generator), 0.1, method="accurate")
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(
    "delta, options, message",
    [
        (torch.zeros(4), {}, r"x has shape \(4,\)"),
        (torch.zeros(4, 4, dtype=torch.bfloat16), {}, "x has dtype torch.bfloat16; expected torch.float32"),
        (torch.full((2, 2), float("nan")), {}, "NaN or infinite"),
        (torch.ones(2, 2), {"beta": 1.5}, "beta is 1.5"),
        (torch.ones(2, 2), {"method": "quick"}, "method is 'quick'; expected one of auto, accurate"),
        (torch.ones(2, 2), {"null": "drop"}, "null is 'drop'"),
    ],
)
def test_wrong_arguments_are_named(delta, options, message):
    with pytest.raises(ValueError, match=message):
        subspace_boost(delta, **options)
