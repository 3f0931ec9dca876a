"""Where the Triton backend stands in the registry."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fastmerge import kernels

# Ranks in rows take shared memory that is addressed by data, which Triton does not offer.
WITHOUT = {"rank_mask"}


def test_importing_fastmerge_leaves_triton_alone():
    code = "import sys, fastmerge, fastmerge.kernels; print('triton' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("operation", kernels.OPERATIONS.values(), ids=lambda operation: operation.name)
def test_every_operation_has_it(operation):
    assert ("triton" in operation.implementations) == (operation.name not in WITHOUT)


def test_a_pinned_backend_that_cannot_run_says_why():
    tensor = torch.ones(4)
    with pytest.raises(
        kernels.BackendError, match=r"'triton' was asked for but cannot run: .*(Triton|CUDA|cpu tensors)"
    ):
        kernels.weighted_sum(tensor, [tensor], [1.0], backend="triton")
