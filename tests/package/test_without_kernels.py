"""fastmerge as installed without a compiler: it works, and says once what would make it fast."""

from __future__ import annotations

import sys

import pytest
from commands import call, call_json, write_recipe
from tiny_merges import same_files
from tiny_models import save_family

import fastmerge
from fastmerge.kernels import OPERATIONS, _native


@pytest.fixture
def no_extension(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastmerge._C", None)
    monkeypatch.delattr(fastmerge, "_C", raising=False)
    _native._load.cache_clear()
    for operation in OPERATIONS.values():
        monkeypatch.setattr(operation, "_chosen", {})
    yield
    _native._load.cache_clear()


def test_a_merge_gives_the_same_bytes_and_says_what_is_missing(tmp_path, request):
    recipe = write_recipe(tmp_path / "r.yml", save_family(tmp_path))
    assert call("merge", recipe, tmp_path / "fast", "--backend", "auto").exit_code == 0
    request.getfixturevalue("no_extension")
    result = call("merge", recipe, tmp_path / "slow")
    assert result.exit_code == 0
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert notes[0].startswith("note: the CPU kernels are missing")
    assert "install a C++17 compiler with Python's headers (Debian: g++ python3-dev)" in notes[0]
    assert same_files(tmp_path / "fast", tmp_path / "slow")
    assert "note: the CPU" not in call("merge", recipe, tmp_path / "pinned", "--backend", "reference").stderr


def test_doctor_says_what_is_missing(no_extension):
    found = call_json("doctor")
    assert found["extension"]["fastmerge._C"].startswith("missing: the CPU kernels are missing")
    assert set(found["backends"]) == set(OPERATIONS)
    assert all(text.startswith("reference (") for text in found["backends"].values())
