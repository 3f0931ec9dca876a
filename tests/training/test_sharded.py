"""Averages on the shards of FSDP2: two ranks, by gloo, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "average_with_fsdp2.py"

pytestmark = [
    pytest.mark.skipif(not EXAMPLE.exists(), reason="needs the sources"),
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo"),
]


def on_two_ranks(tmp_path, *command) -> list[int]:
    """Run a program on two ranks; INIT in its arguments is how they find each other. Returns their statuses."""
    store = tmp_path / "store"
    store.unlink(missing_ok=True)
    arguments = [f"file://{store}" if argument == "INIT" else str(argument) for argument in command]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen([sys.executable, *arguments], env={**environment, "RANK": str(rank)}, cwd=ROOT)
        for rank in range(2)
    ]
    try:
        return [rank.wait(timeout=300) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


def test_shards_average_and_resume_to_the_bit(tmp_path):
    worker = ROOT / "tests" / "support" / "averaging_ranks.py"
    assert on_two_ranks(tmp_path, worker, EXAMPLE, tmp_path, "INIT") == [0, 0]


@pytest.mark.slow
def test_the_example_goes_on_after_it_was_killed(tmp_path):
    def run(name, *options):
        return on_two_ranks(tmp_path, EXAMPLE, "--out", tmp_path / name, "--init", "INIT", *options)

    assert run("whole") == [0, 0]
    assert run("killed", "--kill-at", 5) == [9, 9]
    assert not list((tmp_path / "killed").glob("*.safetensors"))
    assert run("killed") == [0, 0]
    results = sorted((tmp_path / "whole").glob("*.safetensors"))
    assert [path.stem for path in results] == ["fast", "last", "mean", "model", "slow"]
    for path in results:
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes(), path.name
