"""Counts the instructions that one call of a CPU loop executes, by single steps.

The counts depend on the machine code and the input alone, not on load, caches or what a container forbids: no hardware
counter and no tracing of processes is needed. A step takes about 10 microseconds.
"""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fastmerge.kernels import _native

from .code import Library

# States of _stepper.cpp.
ARMED, STEPPING = 1, 2


class CannotStep(RuntimeError):
    """Why a system lets nobody step through its processes."""


def why_not() -> str | None:
    """Return why instructions cannot be counted here, or None."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "only x86-64 processors under Linux are stepped through"
    missing = [tool for tool in ("g++", "objdump", "readelf") if shutil.which(tool) is None]
    return f"{missing[0]} is missing" if missing else _native.why_no_cpu_extension()


class Stepper:
    """Steps through loops of a library that this process has loaded."""

    def __init__(self, library: Library):
        with tempfile.TemporaryDirectory() as folder:
            helper = Path(folder) / "stepper.so"
            source = Path(__file__).with_name("_stepper.cpp")
            subprocess.run(["g++", "-std=c++17", "-O1", "-shared", "-fPIC", source, "-o", helper], check=True)
            self._helper = ctypes.CDLL(str(helper))
        self._helper.arm.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        self._helper.arm.restype = ctypes.c_bool
        self._library = library
        self._begin = library.loaded_at()

    def count(self, isa: str, loop: str, call: Callable[[], object]) -> Tensor:
        """Return how often each instruction of the library is executed in the first call of a loop that ``call`` makes.

        Indexed by address. Returns within the thread that calls: there must be no other.
        """
        counts = torch.zeros(self._library.code_end, dtype=torch.int32)
        entry = self._begin + self._library.entry(isa, loop)
        if not self._helper.arm(entry, counts.data_ptr(), self._begin, len(counts)):
            raise CannotStep("this system allows no breakpoint in machine code")
        try:
            call()
        finally:
            reached = self._helper.disarm()
        if reached == ARMED:
            raise RuntimeError(f"the {loop} of {isa} was not called")
        if reached == STEPPING:
            raise CannotStep("this system passes no traps of single steps on")
        return counts
