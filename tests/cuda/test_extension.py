"""The extension that nvcc builds: imported without a driver, a call says what is missing, and no kernel spills."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastmerge import kernels
from fastmerge.kernels import _cuda

ROOT = Path(__file__).resolve().parents[2]

# Builds the CUDA extension alone.
BUILD = """
import runpy, sys, setuptools
setup = setuptools.setup
def only_cuda(ext_modules, **rest):
    setup(ext_modules=[e for e in ext_modules if e.name == "fastmerge._cuda"], **rest)
setuptools.setup = only_cuda
sys.argv = ["setup.py", "-q", "build_ext", *sys.argv[1:]]
runpy.run_path("setup.py")
"""

# Imports the extension at a path, and calls it.
CALL = """
import importlib.util, sys
from array import array
spec = importlib.util.spec_from_file_location("_cuda", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.why_unavailable())
try:
    module.weighted_sum(array("q"), array("f"), (0, 0))
except RuntimeError as error:
    print(error)
"""


def _run(*command: object, **environment: str) -> subprocess.CompletedProcess:
    result = subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True, env=os.environ | environment
    )
    print(result.stdout, result.stderr)
    return result


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extension for one target, built by nvcc."""
    if shutil.which("nvcc") is None or not (ROOT / "setup.py").exists():
        pytest.skip("needs nvcc and the sources")
    folder = tmp_path_factory.mktemp("nvcc")
    places = "--build-lib", folder, "--build-temp", folder / "objects"
    result = _run(sys.executable, "-c", BUILD, *places, FASTMERGE_CUDA="1", FASTMERGE_CUDA_ARCHITECTURES="90")
    assert result.returncode == 0
    assert "warning #" not in result.stderr and "warning: " not in result.stderr
    (found,) = (folder / "fastmerge").glob("_cuda*.so")
    return found


@pytest.mark.nvcc
def test_without_a_driver(library):
    result = _run(sys.executable, "-c", CALL, library, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0
    why, error = result.stdout.strip().splitlines()
    assert why.startswith(("no NVIDIA driver is loaded; ", "no GPU "))
    assert error == f"the cuda backend cannot run: {why}"


@pytest.mark.nvcc
def test_what_it_compiled_to(library):
    result = _run(sys.executable, "-m", "benchmarks.gpu.compiled_cuda", library, "--arch", "90")
    if "cuobjdump is missing" in result.stderr:
        pytest.skip("needs cuobjdump, which comes with Triton")
    assert result.returncode == 0
    assert "CUDA: 0 faulty kernels" in result.stdout
    assert "sparse_merge_kernel" in result.stdout


def test_a_failed_build_leaves_it_out_unless_it_must_be(tmp_path):
    if shutil.which("nvcc") is None or not (ROOT / "setup.py").exists():
        pytest.skip("needs nvcc and the sources")
    places = "--build-lib", tmp_path, "--build-temp", tmp_path / "objects"
    for wanted, succeeds in (("auto", True), ("1", False)):
        result = _run(
            sys.executable, "-c", BUILD, *places, FASTMERGE_CUDA=wanted, FASTMERGE_CUDA_ARCHITECTURES="1"
        )  # fmt: skip
        assert (result.returncode == 0) == succeeds
        assert "nvcc fatal" in result.stderr


def test_a_setting_that_is_none_is_refused():
    if not (ROOT / "setup.py").exists():
        pytest.skip("needs the sources")
    result = _run(sys.executable, "setup.py", "--name", FASTMERGE_CUDA="maybe")
    assert result.returncode != 0
    assert "FASTMERGE_CUDA is 'maybe'; expected auto, 0 or 1" in result.stderr


def test_a_pinned_backend_that_cannot_run_says_why():
    if _cuda.why_unavailable() is None:
        pytest.skip("the backend runs here")
    import torch

    tensor = torch.ones(4)
    with pytest.raises(kernels.BackendError, match=r"'cuda' was asked for but cannot run: .*(nvcc|driver|GPU|device)"):
        kernels.weighted_sum(tensor, [tensor], [1.0], backend="cuda")


@pytest.mark.parametrize(
    ("driver", "why"),
    [(0, "no NVIDIA driver is loaded; "), (12020, "the driver offers CUDA 12.2, and the kernels need ")],
)
def test_an_old_driver_is_refused(emulated, driver, why):
    emulator = ctypes.CDLL(emulated.__file__)
    emulator.fastmerge_emulated_driver(driver)
    try:
        assert emulated.why_unavailable().startswith(why)
    finally:
        emulator.fastmerge_emulated_driver(13000)
    assert emulated.why_unavailable() == ""


@pytest.mark.parametrize(
    ("capability", "remedy"),
    [(75, "has compute capability 7.5, and the kernels need 8.6; hide it"),
     (80, "has compute capability 8.0, and the kernels need 8.6; install fastmerge again on this machine")],
)  # fmt: skip
def test_a_gpu_that_nothing_was_compiled_for_is_refused(emulated, capability, remedy):
    emulator = ctypes.CDLL(emulated.__file__)
    emulator.fastmerge_emulated_capability(capability)
    try:
        assert remedy in emulated.why_unavailable()
    finally:
        emulator.fastmerge_emulated_capability(90)
    assert emulated.why_unavailable() == ""


@pytest.mark.parametrize("operation", kernels.OPERATIONS.values(), ids=lambda operation: operation.name)
def test_the_tests_know_every_operation(operation):
    from kernel_cases import CASES

    assert "cuda" not in operation.implementations or operation.name in CASES
