"""mergekit's own tests of whole merges pass, but for those that ask for something else than is promised here."""

from __future__ import annotations

import subprocess
import sys

import mergekit_cases
import pytest
from mergekit_peer import mergekit_python

pytestmark = pytest.mark.slow


def test_cases_of_mergekit():
    python = mergekit_python()
    version = subprocess.run([python, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True)
    if version.stdout.split() != [str(n) for n in sys.version_info[:2]]:
        pytest.skip(
            "the interpreter with mergekit has another version of Python, so it cannot take fastmerge from here"
        )
    try:
        results = mergekit_cases.run_cases(python)
    except mergekit_cases.Unavailable as error:
        pytest.skip(str(error))
    failed = {name: error for name, error in results.items() if error}
    assert failed.keys() == mergekit_cases.DIFFERENT.keys(), failed
    assert len(results) >= 60
