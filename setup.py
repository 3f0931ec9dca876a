"""Build the native extension and install ``kernels/`` as ``fastmerge.kernels``.

``kernels/`` sits at the top level for readers, but another distribution on PyPI is called
``kernels``, so it is only ever installed inside the ``fastmerge`` package.
"""

from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import find_packages, setup

SOURCES = sorted(str(path) for path in Path("csrc").glob("*.cpp")) + sorted(
    str(path) for path in Path("csrc/cpu").glob("*.cpp")
)
HEADERS = sorted(str(path) for path in Path("csrc").rglob("*.h"))

# The contract is bit-equality with the reference: no fused multiply-add, no value-changing
# optimization. Instruction sets above the baseline are chosen at run time, per function.
FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-fvisibility=hidden", "-g0", "-Wall", "-Wextra"]

extension = Pybind11Extension(
    "fastmerge._C",
    sources=SOURCES,
    depends=HEADERS,
    include_dirs=["csrc"],
    cxx_std=17,
    extra_compile_args=FLAGS,
    extra_link_args=["-pthread"],
)

KERNEL_PACKAGES = [f"fastmerge.kernels.{name}" for name in find_packages("kernels")]

# One compiler per processor.
ParallelCompile(default=0).install()

setup(
    packages=[*find_packages(include=["fastmerge", "fastmerge.*"]), "fastmerge.kernels", *KERNEL_PACKAGES],
    package_dir={"fastmerge": "fastmerge", "fastmerge.kernels": "kernels"},
    ext_modules=[extension],
    cmdclass={"build_ext": build_ext},
)
