"""Every route of subspace boosting on a CUDA device, against a float64 SVD on the CPU."""

from __future__ import annotations

import pytest
import torch
from deltas import boost_oracle, make_delta, relative_error

from fastmerge.kernels.spectral import polar, subspace_boost

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available"),
]


@pytest.mark.parametrize("method", ["auto", "accurate", "exact", "svd"])
@pytest.mark.parametrize("shape", [(512, 448), (3, 768, 256), (200, 1000), (1, 9)], ids=str)
def test_routes(shape, method, generator):
    m, n = shape[-2:]
    deltas = torch.stack(
        [make_delta("bfloat16_difference", m, n, generator) for _ in range(shape[0] if len(shape) == 3 else 1)]
    )
    results, infos = subspace_boost(deltas.cuda(), 0.2, method=method)
    for delta, result, info in zip(deltas, results, infos, strict=True):
        exact, k = boost_oracle(delta, 0.2)
        peer = relative_error(boost_oracle(delta, 0.2, torch.float32)[0], exact)
        assert result.is_cuda
        assert info.method == ("accurate" if method == "auto" else method)
        assert info.k == k
        assert relative_error(result.cpu(), exact) <= 1.5 * peer + 1e-6, info


def test_null_directions(generator):
    delta = torch.randn(300, 6, generator=generator) @ torch.randn(6, 200, generator=generator)
    result, (info,) = subspace_boost(delta.cuda(), 0.1)
    assert info.nullity == 194 and info.method in ("exact", "svd64")
    assert relative_error(result.cpu(), boost_oracle(delta, 0.1)[0]) < 1e-5
    factor, (info,) = polar(torch.randn(100, 100, generator=generator).cuda(), method="accurate")
    assert relative_error((factor.mT @ factor).cpu(), torch.eye(100)) < 1e-5
