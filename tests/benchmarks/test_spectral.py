"""The benchmark of spectral operations on a CPU: ways that agree, and a row for each of them."""

from __future__ import annotations

import pytest

from benchmarks import _record
from benchmarks.spectral import __main__ as spectral


@pytest.mark.parametrize("op", spectral.CASES)
def test_ways_agree_and_each_has_a_row(op, monkeypatch):
    if op == "adapter_merge":
        pytest.importorskip("peft", reason="PEFT is not installed, the peer of adapter_merge")
    monkeypatch.setattr(spectral, "VERIFY_SIZE", 64)
    spectral.verify([op], 8)
    rows = {row["tool"]: row for row in spectral.measure(op, 48, 8, 1, 0.0)}
    assert len(rows) > 1 and rows["fastmerge"]["ratio"] == 1
    assert set(rows["fastmerge"]) <= set(_record.SPECTRAL_COLUMNS)
    monkeypatch.setitem(spectral.CASES, op, (spectral.CASES[op][0], lambda *_: 1.0, 1e-4))
    with pytest.raises(AssertionError, match=f"{op}: .* is off by 1 at size 64"):
        spectral.verify([op], 8)
