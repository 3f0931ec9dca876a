"""Every method against its formula in float64, as the table of errors has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.accuracy import cases
from benchmarks.accuracy.__main__ import BEGIN, COLUMNS, PAGE
from benchmarks.accuracy.cases import VALUES, Merge
from benchmarks.accuracy.formulas import FORMULAS
from fastmerge.methods import all_methods

SPECTRAL = {name for name, function in FORMULAS.items() if function.__module__.endswith("spectral")}


def test_every_method_has_a_formula_and_a_row():
    assert set(all_methods()) == set(FORMULAS) == set(VALUES)
    rows = [line.split(" | ") for line in PAGE.read_text().partition(BEGIN)[2].splitlines() if line.startswith("| `")]
    assert {row[0].strip("|` ") for row in rows} == set(all_methods()) and all(len(row) == len(COLUMNS) for row in rows)
    assert Path(__file__).resolve().parents[2] / "docs" / "accuracy.md" == PAGE


@pytest.mark.parametrize("method", FORMULAS)
def test_errors_are_those_of_rounding(method, monkeypatch):
    """4 roundings in float32, and one in less; decompositions in float32 are off by 1e-5 of a delta."""
    monkeypatch.setattr(cases, "SHAPE", (24, 40))
    for dtype, bound in ((torch.float32, 4.0), (torch.bfloat16, 0.51), (torch.float16, 0.51)):
        merge = Merge(method, dtype, 0)
        if method not in SPECTRAL:
            assert merge.error(*merge.own("reference")) < bound
        elif method != "ties_sb" or dtype == torch.float32:  # equal magnitudes elect one sign or the other
            exact, _ = merge.formula(torch.float64)
            out, _ = merge.own("reference")
            rounding = torch.finfo(dtype).eps * exact.norm()
            assert (out.double() - exact).norm() < 2e-5 * (exact - merge.inputs()[0]).norm() + rounding
