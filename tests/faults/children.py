"""Merges in processes that are broken on purpose: each a fork of this one, which has everything imported."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SHIM = Path(__file__).with_name("shim.c")

# Kinds of calls and what happens, as in shim.c.
READ, WRITE, SYNC, MAKE, REMOVE = 1, 2, 4, 8, 16
EVERY = READ | WRITE | SYNC | MAKE | REMOVE
COUNT, KILL, KILL_AFTER_HALF, FAIL, FAIL_ONWARD, SIGNAL, SHORT = range(7)

# A child that takes longer hangs. Never a limit on a child that works: a merge here takes a twentieth of a second.
HANGS = 300


@dataclass(frozen=True)
class Fault:
    """What goes wrong: at the ``at``-th call of these ``kinds``, counted from 1, ``what`` happens, with ``value``.

    ``clock`` are seconds by which the wall clock jumps to and fro, all the time.
    """

    what: int = COUNT
    kinds: int = EVERY
    at: int = 0
    value: int = 0
    clock: int = 0


NONE = Fault()


@dataclass(frozen=True)
class Ended:
    """How a child ended: exit status (negative: the signal that killed it), what it wrote, and its calls on files."""

    status: int
    text: str
    calls: int

    @property
    def told(self) -> bool:
        """True when it ended with one clear error: no traceback."""
        return (
            self.status > 0 and "Traceback" not in self.text and ("error: " in self.text or "interrupted" in self.text)
        )


class Machine:
    """Runs functions in children of this process on files below ``folder``."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self._shim.fault_calls.restype = ctypes.c_long

    def run(self, work: Callable[[], int | None], fault: Fault = NONE) -> Ended:
        """Return how ``work`` ended in a child with a fault; its result is the exit status."""
        return self.wait(*self.start(work, fault))

    def start(self, work: Callable[[], int | None], fault: Fault = NONE) -> tuple[int, int]:
        """Start a child; return its process id and the pipe of what it writes. For ``wait``."""
        sys.stdout.flush()
        reading, writing = os.pipe()
        child = os.fork()
        if child:
            os.close(writing)
            return child, reading
        status = 1
        try:
            os.close(reading)
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            signal.alarm(HANGS)
            self._shim.fault_clock(ctypes.c_long(fault.clock))
            self._arm(self._folder, fault.kinds, fault.at, fault.what, fault.value)
            try:
                status = work() or 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
            except BaseException:
                import traceback

                traceback.print_exc()
            calls = self._shim.fault_calls()
            self._arm("", 0, 0, COUNT, 0)
            print(f"\ncalls {calls}", flush=True)
        finally:
            sys.stderr.flush()
            os._exit(status)

    def fold(self, folder: Path) -> None:
        """Let names below ``folder`` differ by more than upper and lower case; for the ``work`` of a child."""
        self._shim.fault_fold(os.fsencode(folder))

    def _arm(self, folder: str | Path, kinds: int, at: int, what: int, value: int) -> None:
        self._shim.fault_arm(os.fsencode(folder), kinds, ctypes.c_long(at), what, value)

    def wait(self, child: int, reading: int) -> Ended:
        """Wait for the end of a child."""
        with open(reading, errors="replace") as pipe:
            text = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        text, _, calls = text.partition("\ncalls ")
        return Ended(status, text.strip(), int(calls or 0))


def stopped(child: int) -> bool:
    """Wait until a child stops itself (SIGSTOP) or ends; True when it stopped."""
    found = os.waitid(os.P_PID, child, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    return found is not None and found.si_code == os.CLD_STOPPED


def why_not() -> str | None:
    """Return why the shim cannot be built here, or None."""
    try:
        subprocess.run(["gcc", "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"there is no gcc to build the broken machine with: {error}"
    return None


def build(folder: Path) -> Path:
    """Compile the shim into ``folder`` and return its path."""
    library = folder / "shim.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, SHIM, "-ldl"], check=True)
    return library
