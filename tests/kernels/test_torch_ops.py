"""``torch.ops.fastmerge``: schemas, fake tensors, and the same results as the functions."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastmerge.kernels.torch_ops  # noqa: F401  (registers the operators)
from fastmerge.kernels import GRID, HISTOGRAM_BINS, OPERATIONS, keep_masked, keep_random

N = 1000
MASKED = keep_masked(torch.arange(-16, 16, dtype=torch.int32))
BAND = [1, 0x3F000000, 2**63 - 1, 0x80000000, 0]


def samples():
    base, tensors = torch.zeros(N), [torch.linspace(-1, 1, N), torch.ones(N)]
    table = torch.zeros(-(-N // GRID), 4, dtype=torch.float64)
    masks = [torch.zeros(32, dtype=torch.int32) for _ in tensors]
    return {
        "weighted_sum": (torch.empty(N), tensors, [0.5, 0.25]),
        "sparse_merge": (
            torch.empty(N), base, tensors, [1.0, 1.0], [*BAND, *keep_random(5, 1, 2**31).integers()], [None, None],
            [1.0, 1.0], "weighted", "weights", 1.0, 0,
        ),
        "gram_partials": (table[:, :3].contiguous(), tensors, base),
        "norm_partials": (table, tensors, base, [*BAND, *MASKED[:5]], [None, MASKED.mask], 2, 0),
        "select_boundaries": (tensors, base, [10, 20, 30, 40]),
        "magnitude_histogram": (torch.zeros(2, HISTOGRAM_BINS[0], dtype=torch.int64), tensors, base, 0, []),
        "equal_counts": (torch.zeros(2, 1, dtype=torch.int64), tensors, None, [0x3F800000, 0]),
        "rank_mask": (masks, tensors, base, [0, 1], [0.5, 0.4], [0.1, 0.2], [10, 100, 1], -5),
        "low_rank_update": (torch.empty(4, 5), torch.ones(4, 5), torch.ones(4, 2), torch.ones(2, 5), 0.5),
    }  # fmt: skip


SAMPLES = samples()


def test_every_operation_is_registered():
    assert len(SAMPLES) == len(OPERATIONS)


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.fastmerge, name).default, SAMPLES[name])


@pytest.mark.parametrize("name", SAMPLES)
def test_fake_tensors(name):
    with FakeTensorMode() as mode:
        args = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, SAMPLES[name])
        result = getattr(torch.ops.fastmerge, name)(*args)
    if name == "select_boundaries":
        assert result.shape == (2, 2, 2) and result.dtype == torch.int64
    else:
        assert result is None


def test_fake_tensors_are_checked():
    with FakeTensorMode(), pytest.raises(ValueError, match=r"tensors\[0\] has shape \(4,\), out has \(3,\)"):
        torch.ops.fastmerge.weighted_sum(torch.empty(3), [torch.empty(4)], [1.0])


def test_results():
    out = torch.empty(3)
    torch.ops.fastmerge.weighted_sum(out, [torch.ones(3), torch.arange(3.0)], [0.5, 2.0])
    assert out.tolist() == [0.5, 2.5, 4.5]
    found = torch.ops.fastmerge.select_boundaries([torch.tensor([1.0, 2.0, 3.0])], None, [1, 2])
    assert found.tolist() == [[[0x40400000, 2**63 - 1], [0x40000000, 2**63 - 1]]]


def test_importing_the_kernels_does_not_register_operators():
    code = "import torch, fastmerge.kernels; assert not hasattr(torch.ops.fastmerge, 'weighted_sum')"
    subprocess.run([sys.executable, "-c", code], check=True)
