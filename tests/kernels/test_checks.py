"""What operations refuse before any backend sees it: tensors without memory of their own, and scalars of no float32."""

from __future__ import annotations

import math
import struct

import pytest
import torch

from fastmerge import kernels
from fastmerge.kernels import SumJob, _checks

SQUARE = torch.ones(4, 4)
STRANGE = {
    "negated": (lambda: torch._neg_view(SQUARE), "is a view that torch computes as it is read"),
    "zeros": (lambda: torch._efficientzerotensor((4, 4)), "is a view that torch computes as it is read"),
    "coo": (SQUARE.to_sparse, "has layout torch.sparse_coo"),
    "csr": (SQUARE.to_sparse_csr, "has layout torch.sparse_csr"),
    "mkldnn": (SQUARE.to_mkldnn, "has layout torch._mkldnn"),
    "nested": (lambda: torch.nested.nested_tensor([SQUARE, SQUARE]), "is a nested tensor"),
    "meta": (lambda: SQUARE.to("meta"), "is on the device meta"),
    "transposed": (lambda: torch.arange(16.0).view(4, 4).t(), "is not contiguous"),
}


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning", "ignore:The PyTorch API of nested:UserWarning")
@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("place", ["tensors[1]", "out"])
def test_tensors_that_are_not_plain_are_refused_by_name(kind, place):
    make, why = STRANGE[kind]
    if kind == "mkldnn" and not torch.backends.mkldnn.is_available():
        pytest.skip("needs a torch with oneDNN")
    strange, plain = make(), SQUARE.clone()
    job = SumJob(plain, [SQUARE, strange], [1.0, 1.0]) if place != "out" else SumJob(strange, [SQUARE], [1.0])
    with pytest.raises(ValueError) as caught:
        kernels.weighted_sum_many([SumJob(plain, [SQUARE], [1.0]), job])
    assert str(caught.value).startswith(f"jobs[1]: {place} {why}")


def test_empty_tensors_and_parameters_are_plain():
    out = torch.full((3,), torch.nan)
    kernels.weighted_sum_many(
        [SumJob(torch.empty(0), [torch.empty(0)], [1.0]), SumJob(out, [torch.nn.Parameter(torch.ones(3))], [2.0])]
    )
    assert out.tolist() == [2.0] * 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3.5e38, -1e300, 10**400])
def test_scalars_that_are_not_finite_in_float32_are_refused(value):
    with pytest.raises(ValueError, match=r"weights\[1\] is .*; expected a finite float32 value"):
        _checks.checked_scalars("weights", [1.0, value], 2)


def test_scalars_are_rounded_to_float32():
    largest = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]
    found = _checks.checked_scalars("weights", [0.1, -0.0, largest, -largest, 2, True], 6)
    assert found == [*struct.unpack("<f", struct.pack("<f", 0.1)), 0.0, largest, -largest, 2.0, 1.0]
    assert math.copysign(1, found[1]) == -1
