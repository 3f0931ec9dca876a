"""Build the native extensions and install ``kernels/`` as ``fastmerge.kernels``.

``kernels/`` sits at the top level for readers, but another distribution on PyPI is called
``kernels``, so it is only ever installed inside the ``fastmerge`` package.
"""

import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import Extension, find_packages, setup
from setuptools.errors import CompileError

SOURCES = sorted(str(path) for path in Path("csrc").glob("*.cpp")) + sorted(
    str(path) for path in Path("csrc/cpu").glob("*.cpp")
)
CUDA_SOURCES = sorted(str(path) for path in Path("csrc/cuda").glob("*.c*"))
HEADERS = sorted(str(path) for path in Path("csrc").rglob("*.h"))

# The contract is bit-equality with the reference: no fused multiply-add, no value-changing
# optimization. Instruction sets above the baseline are chosen at run time, per function.
FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-fvisibility=hidden", "-g0", "-Wall", "-Wextra"]

cpu = Pybind11Extension(
    "fastmerge._C",
    sources=SOURCES,
    depends=HEADERS,
    include_dirs=["csrc"],
    cxx_std=17,
    extra_compile_args=FLAGS,
    extra_link_args=["-pthread"],
)

# Machine code for these targets, and intermediate code of the last for what comes after it. -O1 is for the host alone.
CUDA_ARCHITECTURES = os.environ.get("FASTMERGE_CUDA_ARCHITECTURES", "80 86 89 90 100 120").split()
CUDA_FLAGS = ["-std=c++17", "-O1", "--fmad=false", "--compress-mode=size", "--threads=0"]
CUDA_FLAGS += ["-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall,-Wextra"]
CUDA_FLAGS += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in CUDA_ARCHITECTURES]
CUDA_FLAGS += ["-gencode=arch=compute_{0},code=compute_{0}".format(CUDA_ARCHITECTURES[-1])]


def cuda_extensions() -> list[Extension]:
    """Return the CUDA extension: FASTMERGE_CUDA=auto builds it where nvcc is found, 1 insists, 0 leaves it out."""
    wanted = os.environ.get("FASTMERGE_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"FASTMERGE_CUDA is {wanted!r}; expected auto, 0 or 1")
    if wanted == "1" and shutil.which("nvcc") is None:
        raise SystemExit(
            "FASTMERGE_CUDA=1 needs nvcc (CUDA 12.8 or later) on the PATH; install the CUDA toolkit, or set 0"
        )
    if wanted == "0" or shutil.which("nvcc") is None:
        return []
    return [Extension("fastmerge._cuda", CUDA_SOURCES, depends=HEADERS, optional=wanted == "auto")]


class BuildExtensions(build_ext):
    """Builds and links the CUDA extension with nvcc. Its runtime is static, so that it needs no more than a driver."""

    def build_extension(self, extension: Extension) -> None:
        if extension.name != "fastmerge._cuda":
            return super().build_extension(extension)
        target, objects = Path(self.get_ext_fullpath(extension.name)), Path(self.build_temp) / "cuda"
        for folder in (target.parent, objects):
            folder.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{path}" for path in ("csrc", pybind11.get_include(), sysconfig.get_path("include"))]
        outputs = [objects / f"{Path(source).name}.o" for source in extension.sources]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            commands = zip(extension.sources, outputs, strict=True)
            list(pool.map(lambda c: self.nvcc(*CUDA_FLAGS, *includes, "-c", c[0], "-o", c[1]), commands))
        self.nvcc("-shared", "-cudart=static", "-Xlinker=--strip-all", *outputs, "-o", target)

    def nvcc(self, *arguments: object) -> None:
        command = ["nvcc", *map(str, arguments)]
        if subprocess.run(command).returncode:
            raise CompileError(f"{' '.join(command)} failed")


KERNEL_PACKAGES = [f"fastmerge.kernels.{name}" for name in find_packages("kernels")]

# One compiler per processor.
ParallelCompile(default=0).install()

setup(
    packages=[*find_packages(include=["fastmerge", "fastmerge.*"]), "fastmerge.kernels", *KERNEL_PACKAGES],
    package_dir={"fastmerge": "fastmerge", "fastmerge.kernels": "kernels"},
    ext_modules=[cpu, *cuda_extensions()],
    cmdclass={"build_ext": BuildExtensions},
)
