"""The command that proves and times the GPU backends, in its dry form: the whole way to the rows, on tiny tensors."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_dry_run(tmp_path):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    command = [sys.executable, "-m", "benchmarks.gpu", "--check", "--out", tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(result.stdout, result.stderr, *(path.read_text()[-2000:] for path in tmp_path.glob("*.log")))
    assert result.returncode == 0
    with (tmp_path / "check.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(row["device"].startswith("check in Triton's interpreter") for row in rows)
    assert {row["tool"] for row in rows} == {"fastmerge", "torch", "torch.compile"}
    assert {"ties", "weighted_sum of 16", "select of 3", "ties, 70B-shaped"} <= {row["op"] for row in rows}
