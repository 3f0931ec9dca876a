"""Runs this folder's tests on the CPU, through Triton's interpreter, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_in_interpreter():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "gpu", "-p", "no:cacheprovider", "."]
    result = subprocess.run(command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True)
    print(result.stdout, result.stderr)
    assert result.returncode == 0
    assert "skipped" not in result.stdout
