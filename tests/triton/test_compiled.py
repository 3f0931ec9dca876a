"""Ahead-of-time compilation: no spill, wide loads, no fused multiply-add, on three GPU families, without a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Compiles tensors that are not aligned to 16 bytes, and blocks of more values than there are registers.
BAD = """
from benchmarks.gpu import compiled
import torch
from fastmerge import kernels
from fastmerge.kernels._triton import weighted_sum as module

def cases(brief):
    tensors = [torch.empty(2**16 + 1)[1:] for _ in range(2)]
    yield "unaligned", lambda: kernels.weighted_sum(tensors[0], tensors, [1.0, 1.0])
    module.elementwise_block = lambda *args, **kwargs: (2**15, 2)
    whole = [torch.empty(2**16) for _ in range(2)]
    yield "too large", lambda: kernels.weighted_sum(whole[0], whole, [1.0, 1.0])

compiled.cases = cases
for report in compiled.compile_all(90, False):
    print(report.case, report.faults)
"""


def _run(*arguments: str) -> subprocess.CompletedProcess:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    print(result.stdout, result.stderr)
    return result


@pytest.mark.slow
def test_every_kernel():
    result = _run("-m", "benchmarks.gpu.compiled", "--brief", "--arch", "80", "90", "100")
    assert result.returncode == 0
    assert "0 faulty kernels" in result.stdout


@pytest.mark.slow
def test_faults_are_found():
    lines = _run("-c", BAD).stdout.splitlines()
    assert any("unaligned" in line and "narrow loads" in line for line in lines)
    assert any("too large" in line and "spills" in line for line in lines)
