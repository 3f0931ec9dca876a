"""The functions of setup.py, without what it does."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def building(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The names of setup.py; skips where it is absent."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("needs the sources")
    with warnings.catch_warnings():
        # It warns of the distutils that it replaces, and fails where that is an error.
        warnings.simplefilter("ignore")
        setuptools = pytest.importorskip("setuptools")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: None)
    return SimpleNamespace(**runpy.run_path("setup.py"))
