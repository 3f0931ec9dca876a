"""Paths through machine code: the shortest one that contains what it must, and one turn of a loop."""

from __future__ import annotations

import pytest

from benchmarks.gpu._paths import Path, issue_us, length

# A turn at 0x20 leads past a division; a loop from 0x60 to 0x80; the end stores.
CODE = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   ISETP.NE.AND P0, PT, R2, RZ, PT ;
        /*0020*/              @!P0 BRA 0x60 ;
        /*0030*/                   F2F.F64.F32 R4, R3 ;
        /*0040*/                   DFMA R4, R4, R6, R8 ;
        /*0050*/                   NOP ;
        /*0060*/                   LDG.E.128 R8, desc[UR4][R2.64] ;
        /*0070*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0080*/               @P1 BRA 0x60 ;
        /*0090*/                   STG.E.128 desc[UR4][R2.64], R8 ;
        /*00a0*/                   EXIT ;
"""


@pytest.mark.parametrize(
    ("must", "loop", "expected"),
    [
        ({}, False, 7),
        ({r"F2F\.F64\.F32": 1}, False, 9),
        ({r"F2F\.F64\.F32": 2}, False, None),
        ({r"LDG\.E.*128": 1}, True, 3),
        ({r"DFMA": 1}, True, None),
    ],
)
def test_lengths(must, loop, expected):
    assert length(CODE, Path("_kernel", "a path", must, loop)) == expected


def test_an_instruction_per_element_takes_two_microseconds_at_full_issue():
    assert issue_us(1) * 0.75 == pytest.approx(2.0, rel=0.01)
