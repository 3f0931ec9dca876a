"""The benchmark of LoRA extraction on a CPU: ways that agree, and a row for each of them."""

from __future__ import annotations

import pytest

from benchmarks import _record, spectral


def test_ways_agree_and_each_has_a_row(monkeypatch):
    monkeypatch.setattr(spectral, "VERIFY_SIZE", 64)
    spectral.verify(8)
    rows = {row["tool"]: row for row in spectral.measure(48, 8, 1, 0.0)}
    assert len(rows) == 3 and rows["fastmerge"]["ratio"] == 1
    assert set(rows["fastmerge"]) <= set(_record.SPECTRAL_COLUMNS)
    monkeypatch.setattr(spectral, "error_of", lambda *_: 1.0)
    with pytest.raises(AssertionError, match="fastmerge is off by 1 at size 64"):
        spectral.verify(8)
