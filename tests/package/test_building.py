"""What setup.py compiles, for which GPUs, and what it leaves out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def script(folder: Path, name: str, text: str) -> None:
    """Put a shell script that prints ``text`` into ``folder``."""
    (folder / name).write_text(f"#!/bin/sh\nprintf '{text}'\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A folder that is all of the PATH, and an environment that asks for nothing."""
    (tmp_path / "tools").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))
    for name in ("FASTMERGE_CPU", "FASTMERGE_CUDA", "FASTMERGE_CUDA_ARCHITECTURES", "CXX", "CXXFLAGS", "LDFLAGS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "tools"


@pytest.mark.parametrize(
    ("gpus", "architectures"),
    [
        (r"9.0\n8.6\n9.0\n", ["86", "90"]),
        (r"7.5\n", ["80"]),  # older than any kernel
        (r"13.1\n", ["121"]),  # newer than nvcc
        ("No devices were found", ["80"]),
    ],
)
def test_cuda_is_compiled_for_the_gpus_that_are_here(building, tools, gpus, architectures):
    script(tools, "nvidia-smi", gpus)
    script(tools, "nvcc", r"sm_75\nsm_80\nsm_86\nsm_90\nsm_121\n")
    assert building.cuda_architectures()[0] == architectures


def test_cuda_architectures_are_named(building, tools, monkeypatch, capfd):
    assert building.cuda_architectures()[0] == ["80"]
    monkeypatch.setenv("FASTMERGE_CUDA_ARCHITECTURES", "all")
    assert building.cuda_architectures()[0] == ["80", "86", "89", "90", "100", "120"]
    monkeypatch.setenv("FASTMERGE_CUDA_ARCHITECTURES", "86 90")
    machine = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in (86, 90)]
    later = "-gencode=arch=compute_90,code=compute_90"
    assert building.cuda_flags() == [*machine, later, "-DFASTMERGE_LEAST_CAPABILITY=86"]
    said = "CUDA kernels for compute capability 8.6, 9.0 and newer (as FASTMERGE_CUDA_ARCHITECTURES says)"
    assert capfd.readouterr().out == f"fastmerge: {said}\n"


def test_objects_are_kept_until_what_they_were_made_of_changes(building, tmp_path):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    source, header = tmp_path / "a source.cpp", tmp_path / "its header.h"
    source.write_text('#include "its header.h"\nint f() { return one(); }\n')
    header.write_text("inline int one() { return 1; }\n")
    runs = tmp_path / "runs"
    counting = tmp_path / "compiler"
    counting.write_text(f'#!/bin/sh\necho >> "{runs}"\nexec {compiler} "$@"\n')
    counting.chmod(0o755)

    def compile_it() -> int:
        made = building.compiled([str(counting)], str(source), tmp_path)
        assert made == tmp_path / "a source.cpp.o" and made.exists()
        return runs.read_text().count("\n")

    assert [compile_it(), compile_it()] == [1, 1]
    later = (tmp_path / "a source.cpp.o").stat().st_mtime + 1
    os.utime(header, (later, later))
    assert compile_it() == 2
    header.unlink()
    with pytest.raises(building.CompileError):
        compile_it()


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", folder, "--build-temp", folder / "objects"]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


def test_without_a_compiler_the_kernels_are_left_out_with_one_sentence(building, tools, tmp_path):
    done = build(tmp_path / "out", FASTMERGE_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert "no C++ compiler was found, so the CPU kernels are left out" in done.stderr
    assert "install a C++17 compiler with Python's headers (Debian: g++ python3-dev)" in done.stderr
    assert not list(tmp_path.glob("out/fastmerge/*.so"))


@pytest.mark.parametrize(("wanted", "says"), [("FASTMERGE_CPU", "no C++ compiler"), ("FASTMERGE_CUDA", "no nvcc")])
def test_without_a_compiler_what_is_insisted_on_fails(building, tools, tmp_path, wanted, says):
    done = build(tmp_path / "out", **{"FASTMERGE_CPU": "0", "FASTMERGE_CUDA": "0", wanted: "1"})
    assert done.returncode != 0
    assert f"{says} was found" in done.stderr
