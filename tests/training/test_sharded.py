"""Averages on the shards of FSDP2, and the worked example: two ranks, by gloo, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "train_average_merge.py"

pytestmark = [
    pytest.mark.skipif(not EXAMPLE.exists(), reason="needs the sources"),
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo"),
]


def test_train_average_die_go_on_merge_and_verify(tmp_path):
    worker = ROOT / "tests" / "support" / "averaging_ranks.py"
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, worker, EXAMPLE, tmp_path], env=environment, cwd=ROOT, timeout=600, check=True)
    found = {path.name for path in (tmp_path / "work").iterdir()}
    assert found >= {"merged", "merged-dcp", "by-one-process", "back"}
