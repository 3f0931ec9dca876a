"""Builds ``fastmerge._cuda`` for the CPU: the sources of csrc/cuda, compiled by g++ against ``cuda_emulator/``."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "csrc"
EMULATOR = Path(__file__).parent / "cuda_emulator"
# The compiler does not know the pragma of nvcc; every other warning is an error.
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-DFASTMERGE_LEAST_CAPABILITY=86")
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
# Of kernels whose accesses to memory are checked: see cuda_emulator/races.cpp.
FIND_RACES = ("-fsanitize=thread",)


def build(
    folder: Path, extra: tuple[str, ...] = (), kernels: tuple[str, ...] = (), sources: Sequence[Path] | None = None,
    made: Path | None = None,
) -> Path:  # fmt: skip
    """Compile the emulated extension into ``folder`` and return its path; skips the test where that is impossible.

    Args:
        folder:  existing, for the objects too.
        extra:   flags of the compiler and the linker.
        kernels: flags of the sources that hold kernels.
        sources: other ones than those of the extension.
        made:    folder of an extension whose objects without kernels are taken as they are.
    """
    compiler = shutil.which("g++")
    if compiler is None or not SOURCES.is_dir():
        pytest.skip("the emulator needs g++ and the sources")
    pybind11 = pytest.importorskip("pybind11")
    includes = [f"-I{path}" for path in (EMULATOR, SOURCES, pybind11.get_include(), sysconfig.get_path("include"))]

    def compile_one(source: Path) -> Path:
        if made is not None and source.suffix == ".cpp":
            return made / f"{source.name}.o"
        target = folder / f"{source.name}.o"
        # Templates of the bindings take half of the time, and optimized twice that.
        level = ("-O0",) if source.name == "bindings.cpp" else ()
        flags = (*level, *extra, *(kernels if source.suffix == ".cu" else ()))
        command = [compiler, *FLAGS, *WARNINGS, *flags, *includes, "-x", "c++", "-c", source, "-o", target]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return target

    if sources is None:
        sources = list((SOURCES / "cuda").glob("*.c*"))
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, [*sources, *EMULATOR.glob("*.cpp")]))
    library = folder / "_cuda.so"
    subprocess.run([compiler, "-shared", *extra, *objects, "-o", library], check=True)
    return library


def load(library: Path) -> ModuleType:
    """Import the extension at ``library``."""
    spec = importlib.util.spec_from_file_location("_cuda", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def order(library: str | Path, seed: int) -> None:
    """Let the threads and blocks of the emulated kernels in ``library`` run at random; seed 0: as they are numbered."""
    ctypes.CDLL(str(library)).fastmerge_emulated_order(ctypes.c_uint(seed))


@contextlib.contextmanager
def shared_memory(module: ModuleType, limit: int) -> Iterator[None]:
    """Let a block of the emulated GPU have at most so many bytes of shared memory, within the context."""
    limited = ctypes.CDLL(module.__file__).fastmerge_emulated_shared
    limited(ctypes.c_size_t(limit))
    try:
        yield
    finally:
        limited(ctypes.c_size_t(227 << 10))
