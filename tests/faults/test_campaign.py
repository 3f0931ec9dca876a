"""The short form of the fault campaign: every kind of fault, a few times each, at fresh places."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.compiled  # of which the budgets are
def test_no_fault_breaks_a_promise():
    command = [sys.executable, "-m", "tests.faults", "--short", "--json"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    print(done.stderr)
    found = json.loads(done.stdout)
    assert not found["broken"], "\n".join(found["broken"])
    counts = found["table"]
    assert len(counts) > 15 and all(sum(ends.values()) for ends in counts.values())
    assert counts["kill -9 anywhere, new target"]["killed"] > 0
    assert counts["reads cut short"]["the same bytes"] > 0
