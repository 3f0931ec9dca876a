"""Limits of the reports on machine code: what grows past them is a fault, and recording them makes room."""

from __future__ import annotations

import json
from dataclasses import replace

from benchmarks import limits
from benchmarks.gpu._sass import Report

REPORT = Report(90, "3 bfloat16", "_kernel", 49, 0, 0, 790, 4, 0, 1, ())
TOOL = "Triton 3.7"


def test_a_kernel_that_grows_is_a_fault(tmp_path):
    file = tmp_path / "limits.json"
    limits.record([REPORT], TOOL, file)
    assert json.loads(file.read_text()) == {TOOL: {"90": {"_kernel 3 bfloat16": [56, 830]}}}
    grown = [REPORT, replace(REPORT, registers=57), replace(REPORT, instructions=831), replace(REPORT, case="new")]
    assert [report.faults for report in limits.checked(grown, TOOL, file)] == [
        (),
        ("57 registers, at most 56 are allowed",),
        ("831 instructions, at most 830 are allowed",),
        ("no limits in limits.json; run again with --record",),
    ]


def test_other_faults_stay_and_other_compilers_are_named(tmp_path, capsys):
    file, spilled = tmp_path / "limits.json", replace(REPORT, registers=255, faults=("spills: 8 bytes of stack",))
    limits.record([REPORT], TOOL, file)
    assert limits.checked([spilled], TOOL, file)[0].faults[0] == "spills: 8 bytes of stack"
    assert limits.checked([spilled], "Triton 9.9", file) == [spilled]
    assert "no limits for Triton 9.9 and 90" in capsys.readouterr().out


def test_recording_keeps_the_limits_of_others(tmp_path):
    file = tmp_path / "limits.json"
    limits.record([REPORT], TOOL, file)
    limits.record([replace(REPORT, arch=80), replace(REPORT, arch=80, registers=60)], TOOL, file)
    limits.record([REPORT], "nvcc 13.0", file)
    found = json.loads(file.read_text())
    assert found[TOOL].keys() == {"80", "90"} and found["nvcc 13.0"].keys() == {"90"}
    assert found[TOOL]["80"]["_kernel 3 bfloat16"] == [64, 830]


def test_the_kernels_here_have_limits():
    recorded = json.loads(limits.FILE.read_text())
    assert recorded["Triton 3.7"].keys() == {"80", "90", "100"} and recorded["nvcc 13.0"].keys() == {"90"}
