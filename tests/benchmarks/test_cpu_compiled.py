"""The report on CPU loops: what it reads from machine code, and that its counts are exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import limits
from benchmarks.cpu import compiled
from benchmarks.cpu.code import Library, cycles, parse
from benchmarks.cpu.compiled import Case
from benchmarks.cpu.stepping import CannotStep, Stepper, why_not
from fastmerge.kernels import _native

CASE = Case("weighted_sum", 3, torch.bfloat16, based=False)


@pytest.mark.parametrize(
    ("text", "width", "arithmetic", "loads", "stores", "spills"),
    [
        ("vaddps %ymm1,%ymm2,%ymm3", 32, True, 0, 0, False),
        ("vmulps 0x20(%rsp),%ymm2,%ymm3", 32, True, 1, 0, True),
        ("vmovups (%rdi,%rax,2),%zmm1", 64, False, 1, 0, False),
        ("vmovaps %xmm8,-0x50(%rbp)", 16, False, 0, 1, True),
        ("vmovups %zmm0,(%rax){%k1}", 64, False, 0, 1, False),
        ("vcmpltps (%rdx),%zmm1,%k2", 64, True, 1, 0, False),
        ("addl   $0x1,(%rdi,%rcx,4)", 0, False, 1, 1, False),
        ("cmp    %rax,0x8(%rbx)", 0, False, 1, 0, False),
        ("lea    0x10(%rax,%rcx,4),%rdx", 0, False, 0, 0, False),
        ("prefetcht0 0x800(%rax)", 0, False, 1, 0, False),
        ("push   %rbx", 0, False, 0, 1, False),
    ],
)
def test_an_instruction(text, width, arithmetic, loads, stores, spills):
    found = parse(text)
    assert (found.width, found.arithmetic, found.loads, found.stores, found.spills) == (
        width, arithmetic, loads, stores, spills,
    )  # fmt: skip


def test_cycles_are_those_of_the_busiest_part():
    add, load, other = parse("vaddps %zmm1,%zmm2,%zmm3"), parse("mov (%rax),%rbx"), parse("inc %rax")
    assert cycles([(add, 4), (other, 3)]) == 2
    assert cycles([(load, 6)]) == 3
    assert cycles([(add, 1), (other, 11)]) == 3
    assert cycles([(add, 1), (parse("vdivps %ymm1,%ymm2,%ymm3"), 2)]) == 10


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_counts_are_exact_and_within_their_limits():
    extension = _native.cpu_extension()
    library = Library(Path(extension.__file__))
    stepper = Stepper(library)
    widest = {}
    try:
        for isa in extension.available_isas():
            extension.set_isa(isa)
            found = compiled.count(stepper, library, isa, CASE)
            assert found == compiled.count(stepper, library, isa, CASE)
            # A pair of vectors takes whole instructions.
            pairs = compiled.PER * 2 // compiled.ISAS[isa]
            assert found.instructions % pairs == 0
            widest[isa] = found.instructions
            assert limits.checked([found], library.compiler())[0].faults == ()
    except CannotStep as error:
        pytest.skip(str(error))
    finally:
        extension.set_isa("auto")
    assert sorted(widest.values(), reverse=True) == [widest[isa] for isa in extension.available_isas()]
    # A vector of float32 takes three products, two additions, and half of three loads and a store.
    assert all(7 * compiled.PER * 4 // compiled.ISAS[isa] <= count for isa, count in widest.items())


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_what_is_not_counted_is_said(monkeypatch, capsys):
    def refuse(*arguments):
        raise CannotStep("traps are not passed on")

    monkeypatch.setattr(compiled, "count", refuse)
    monkeypatch.setattr("sys.argv", ["compiled", "--isa", "baseline"])
    threads = _native.cpu_extension().get_threads()
    try:
        assert compiled.main() == 0
    finally:
        _native.cpu_extension().set_threads(threads)
        _native.cpu_extension().set_isa("auto")
    assert capsys.readouterr().out == "instructions of the CPU loops are not counted: traps are not passed on\n"
    monkeypatch.setattr("sys.argv", ["compiled", "gramm"])
    with pytest.raises(SystemExit):
        compiled.main()
    assert "no such loop: gramm; there are all_finite, cell_digests" in capsys.readouterr().err


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_a_loop_that_is_not_called_is_an_error():
    extension = _native.cpu_extension()
    stepper = Stepper(Library(Path(extension.__file__)))
    with pytest.raises(RuntimeError, match="the gram of baseline was not called"):
        stepper.count("baseline", "gram", lambda: None)
    # The breakpoint is gone.
    extension.set_isa("baseline")
    try:
        compiled.Case("gram", 1, torch.float32).call(8)()
    finally:
        extension.set_isa("auto")
