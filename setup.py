"""Build the native extensions and install ``kernels/`` as ``fastmerge.kernels``.

``kernels/`` sits at the top level for readers, but another distribution on PyPI is called
``kernels``, so it is only ever installed inside the ``fastmerge`` package.

What a machine lacks is left out: the CPU extension without a C++ compiler, the CUDA extension without nvcc. Objects
stay in ``build/objects``, and are compiled again when something that they were made of has changed.
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# The contract is bit-equality with the reference: no fused multiply-add, no value-changing
# optimization. Instruction sets above the baseline are chosen at run time, per function.
CPU_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-pthread", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
CPU_FLAGS += ["-fwrapv", "-fvisibility=hidden", "-g0", "-DNDEBUG", "-Wall", "-Wextra", "-Wno-psabi", "-Icsrc"]

# -O1 is for the host alone.
CUDA_FLAGS = ["-std=c++17", "-O1", "--fmad=false", "--compress-mode=size", "--threads=0", "-Icsrc"]
CUDA_FLAGS += ["-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall,-Wextra"]

# What wheels hold. A build from source takes the GPUs of its machine, or the least with code for all newer ones.
ALL_ARCHITECTURES = ["80", "86", "89", "90", "100", "120"]


def readme() -> str:
    """Return README.md with links that lead to the repository, for where its files are not beside it."""
    repository = re.findall(r'^Repository = "(.+)"$', Path("pyproject.toml").read_text(), re.MULTILINE)[0]
    text = Path("README.md").read_text(encoding="utf-8")
    images = re.sub(r"!\[([^\]]*)\]\((?![a-z]+:)([^)]+)\)", rf"![\1]({repository}/raw/HEAD/\2)", text)
    return re.sub(r"(?<!!)\[([^\]]*)\]\((?![a-z]+:|#)([^)]+)\)", rf"[\1]({repository}/blob/HEAD/\2)", images)


def setting(name: str) -> str:
    """Return what the environment wants of an extension: auto, 1 to insist on it, or 0 to leave it out."""
    wanted = os.environ.get(name, "auto")
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"{name} is {wanted!r}; expected auto, 0 or 1")
    return wanted


def extension(name: str, *patterns: str, optional: bool) -> Extension:
    """Return the extension of the sources in these places. An empty place is a damaged source archive."""
    sources: list[str] = []
    for pattern in patterns:
        found = sorted(str(path) for path in Path().glob(pattern))
        if not found:
            raise SystemExit(f"{pattern}: no such file; these sources of fastmerge are not complete")
        sources += found
    return Extension(name, sources, depends=sorted(str(path) for path in Path("csrc").rglob("*.h")), optional=optional)


def cpp_compiler() -> list[str] | None:
    """Return the C++ compiler: $CXX, else g++, whose vector types the sources use, else the one that built Python."""
    for candidate in filter(None, [os.environ.get("CXX") or "g++", sysconfig.get_config_var("CXX"), "c++"]):
        command = shlex.split(candidate)
        if shutil.which(command[0]):
            return command
    return None


def missing_for_cpu() -> str:
    """Return the sentence about what the CPU extension lacks here, or an empty one."""
    header = Path(sysconfig.get_path("include"), "Python.h")
    if cpp_compiler() and header.exists():
        return ""
    return (
        f"no {header if cpp_compiler() else 'C++ compiler'} was found, so the CPU kernels are left out and merges will "
        "be many times slower; install a C++17 compiler with Python's headers (Debian: g++ python3-dev) and install "
        "fastmerge again"
    )


def missing_for_cuda() -> str:
    """Return the sentence about what the CUDA extension lacks here, or an empty one."""
    if shutil.which("nvcc"):
        return ""
    return "no nvcc was found, so the CUDA kernels are left out; they need that of CUDA 12.8 or later on the PATH"


def gpu_architectures() -> list[str]:
    """Return the compute capabilities of the GPUs that the driver shows, such as "90"."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return sorted({major + minor for major, minor in re.findall(r"^(\d+)\.(\d)\s*$", shown, re.MULTILINE)}, key=int)


def cuda_architectures() -> tuple[list[str], str]:
    """Return the compute capabilities to compile for, ascending, and why these."""
    named = os.environ.get("FASTMERGE_CUDA_ARCHITECTURES", "").split()
    if named:
        return (ALL_ARCHITECTURES if named == ["all"] else named), "as FASTMERGE_CUDA_ARCHITECTURES says"
    here = [arch for arch in gpu_architectures() if int(arch) >= int(ALL_ARCHITECTURES[0])]
    if not here:
        return ALL_ARCHITECTURES[:1], "no GPU is shown here"
    listed = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True).stdout
    known = {int(number) for number in re.findall(r"^sm_(\d+)$", listed, re.MULTILINE)} or set(map(int, here))
    # A GPU that is newer than nvcc takes the intermediate code of the newest that it knows.
    nearest = {max((code for code in known if code <= int(arch)), default=int(arch)) for arch in here}
    return [str(arch) for arch in sorted(nearest)], "the GPUs of this machine"


def cuda_flags() -> list[str]:
    """Return flags for machine code of each architecture, and intermediate code of the last for those after it."""
    architectures, why = cuda_architectures()
    numbers = [re.sub(r"\D", "", arch) for arch in architectures]
    names = ", ".join(f"{number[:-1]}.{number[-1:]}" for number in numbers)
    print(f"fastmerge: CUDA kernels for compute capability {names} and newer ({why})", flush=True)
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures]
    flags += ["-gencode=arch=compute_{0},code=compute_{0}".format(architectures[-1])]
    return [*flags, f"-DFASTMERGE_LEAST_CAPABILITY={min(numbers, key=int)}"]


def execute(command: list[str]) -> None:
    if subprocess.run(command).returncode:
        raise CompileError(f"{shlex.join(command)} failed")


def is_current(target: Path, dependencies: Path) -> bool:
    """Whether ``target`` is newer than all that a compiler noted in the makefile rule ``dependencies``."""
    try:
        names = re.findall(r"(?:\\.|\S)+", dependencies.read_text().split(":", 1)[1].replace("\\\n", " "))
        made = target.stat().st_mtime
        return all(Path(re.sub(r"\\(.)", r"\1", name)).stat().st_mtime < made for name in names)
    except (OSError, IndexError):
        return False


def compiled(command: list[str], source: str, folder: Path) -> Path:
    """Return the object of ``source``, compiled unless the one in ``folder`` is current."""
    target, dependencies, partial = (folder / (Path(source).name + suffix) for suffix in (".o", ".d", ".part"))
    if not is_current(target, dependencies):
        began = time.time()
        execute([*command, "-MMD", "-MF", str(dependencies), "-c", source, "-o", str(partial)])
        # An edit during the compilation counts as newer.
        os.utime(partial, (began, began))
        partial.replace(target)
    return target


class BuildExtensions(build_ext):
    """Compiles what has changed, on all processors, the CUDA extension by nvcc with the runtime inside."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # Editable installs build in a temporary folder: nothing would be found there the next time.
        if not any("build_temp" in self.distribution.get_option_dict(name) for name in ("build", "build_ext")):
            self.build_temp = str(Path(self.get_finalized_command("build").build_base) / "objects")

    def run(self) -> None:
        self.extensions = [extension for extension in self.extensions if self.can_build(extension)]
        super().run()

    def can_build(self, extension: Extension) -> bool:
        """Whether the tools are here. Raises CompileError if the environment insists on the extension."""
        missing = missing_for_cuda() if extension.name == "fastmerge._cuda" else missing_for_cpu()
        if missing and not extension.optional:
            raise CompileError(missing)
        if missing:
            print(f"fastmerge: {missing}", file=sys.stderr, flush=True)
        return not missing

    def build_extension(self, extension: Extension) -> None:
        if extension.name == "fastmerge._cuda":
            compiler = ["nvcc", *CUDA_FLAGS, *cuda_flags()]
            linker = ["nvcc", "-shared", "-cudart=static", "-Xlinker=--strip-all"]
        else:
            command = cpp_compiler() or []
            compiler = [*command, *shlex.split(os.environ.get("CXXFLAGS", "")), *CPU_FLAGS]
            linker = [*command, "-shared", "-pthread", *shlex.split(os.environ.get("LDFLAGS", ""))]
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        execute([*linker, *map(str, self.objects(compiler, extension)), "-o", str(target)])

    def objects(self, compiler: list[str], extension: Extension) -> list[Path]:
        """Return the compiled sources. Objects of other flags, compilers and Pythons lie in other folders."""
        import pybind11

        version = subprocess.run([compiler[0], "--version"], capture_output=True, text=True).stdout
        facts = [*compiler, version, pybind11.__version__, str(sysconfig.get_config_var("SOABI"))]
        folder = Path(self.build_temp) / f"{extension.name}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        # System headers are not noted as dependencies: a build environment of pip is gone the next time.
        includes = ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda source: compiled([*compiler, *includes], source, folder), extension.sources))


CPU, CUDA = setting("FASTMERGE_CPU"), setting("FASTMERGE_CUDA")
EXTENSIONS = [
    (CPU, extension("fastmerge._C", "csrc/*.cpp", "csrc/cpu/*.cpp", optional=CPU == "auto")),
    (CUDA, extension("fastmerge._cuda", "csrc/cuda/*.cpp", "csrc/cuda/*.cu", optional=CUDA == "auto")),
]
KERNEL_PACKAGES = [f"fastmerge.kernels.{name}" for name in find_packages("kernels")]

setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
    packages=[*find_packages(include=["fastmerge", "fastmerge.*"]), "fastmerge.kernels", *KERNEL_PACKAGES],
    package_dir={"fastmerge": "fastmerge", "fastmerge.kernels": "kernels"},
    ext_modules=[extension for wanted, extension in EXTENSIONS if wanted != "0"],
    cmdclass={"build_ext": BuildExtensions},
)
