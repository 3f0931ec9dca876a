"""What is installed here, what was chosen, and why."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
from typing import Any

from .. import __version__, kernels
from ..devices import gpus
from ..devices.names import DEFAULT
from ..engine.targets import choose
from ..engine.working import default_threads
from .fatbin import architectures
from .versions import REQUIRED, version_of

OPTIONAL = {
    "huggingface_hub": "models given as hub ids (fastmerge[hub])",
    "triton": "kernels for GPUs (fastmerge[triton])",
    "transformers": "loading the results (not needed for merging)",
    "matplotlib": "pictures of benchmarks (fastmerge[plot])",
}
VARIABLES = {
    "FASTMERGE_BACKEND": "pins the backend of every operation: auto, reference, cpu, triton or cuda",
    "FASTMERGE_CPU": "when fastmerge is installed: auto, 0 or 1, whether to build the CPU kernels",
    "FASTMERGE_CUDA": "when fastmerge is installed: auto, 0 or 1, whether to build the CUDA kernels",
    "FASTMERGE_CUDA_ARCHITECTURES": "when fastmerge is installed: the compute capabilities to build for, or all",
}
SIMD = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_bf16")


def diagnose() -> dict[str, Any]:
    """Return sections of facts by name; every value is text, or None for what is missing."""
    return {
        "versions": {
            "fastmerge": __version__,
            "python": platform.python_version(),
            "system": platform.platform(),
            **{name: version_of(name) for name in REQUIRED},
        },
        "optional packages": {name: f"{version_of(name) or 'not installed'}: {use}" for name, use in OPTIONAL.items()},
        "machine": {
            "cpu": _cpu_info("model name") or platform.processor() or platform.machine(),
            "instructions": " ".join(flag for flag in SIMD if flag in (_cpu_info("flags") or "").split()) or "unknown",
            "cores": str(len(os.sched_getaffinity(0))),
            "memory": _memory(),
            "free disk": f"{shutil.disk_usage('.').free / 1e9:.0f} GB here ({os.getcwd()})",
            "gpu": _gpu(),
        },
        "extension": _extension(),
        "devices": _devices(),
        "threads": {"merge workers": f"{default_threads()} (one per core, and two that wait for the disk)"},
        "backends": _choices("cpu"),
        "GPU kernels": {"fastmerge._cuda": _cuda_extension()},
        "backends on GPUs": _choices("cuda") if gpus.why_none() is None else _orders(),
        "environment": _environment(),
        "to get what is missing": _remedies(),
    }


def report(sections: dict[str, Any]) -> str:
    """Return sections as Markdown for a bug report: without folders of this machine, which say whose it is."""
    lines = []
    for title, facts in sections.items():
        if title != "to get what is missing":
            lines += ["", f"**{title}**", ""]
            lines += [f"- {name}: {_without_folders(str(value or 'not installed'))}" for name, value in facts.items()]
    return "\n".join(lines).lstrip("\n")


def _without_folders(text: str) -> str:
    """Return a text in which absolute paths, but for those of devices, are names of files, or "..." for folders."""

    def name(found: re.Match[str]) -> str:
        return found[0] if found[0].startswith("/dev/") else found[1] if "." in found[1] else "..."

    return re.sub(r"(?<![\w.:/])/(?:[^\s/()]+/)*([^\s/()]*)", name, text)


def _cuda_extension() -> str:
    found = importlib.util.find_spec("fastmerge._cuda")
    if found is None or found.origin is None:
        return "not built: install fastmerge where nvcc is found, or with FASTMERGE_CUDA=1 to see why it is not"
    why = kernels.why_no_cuda_extension()
    return f"built{_compiled_for(found.origin)}; " + (f"it cannot run: {why}" if why else "it runs here")


def _compiled_for(path: str) -> str:
    """Return for which GPUs the CUDA kernels in a file are compiled, as a part of a sentence."""
    machine, intermediate = architectures(path)
    names = ", ".join(f"{arch // 10}.{arch % 10}" for arch in machine)
    newer = "; newer GPUs compile them on first use" if intermediate else ""
    return f" for compute capability {names or 'none'}{newer}"


def _orders() -> dict[str, str]:
    """Return what each operation would run on a GPU, fastest first."""
    return {
        name: f"{', then '.join(op.gpu.backends)} ({op.gpu.because})" for name, op in sorted(kernels.OPERATIONS.items())
    }


def _remedies() -> dict[str, str]:
    """Return what to do about what is not there, by its name."""
    found = {}
    if why := kernels.why_no_cpu_extension():
        found["CPU kernels"] = why
    if why := gpus.why_none():
        found["GPU"] = f"{why}; merging on the processor needs none"
    for name, extra in (("huggingface_hub", "hub"), ("triton", "triton"), ("matplotlib", "plot")):
        if version_of(name) is None:
            found[name] = f"pip install 'fastmerge[{extra}]'"
    return found or {"nothing": "all that fastmerge uses is here"}


def _cpu_info(key: str) -> str | None:
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith(key)), None)
    except OSError:
        return None


def _memory() -> str:
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = (os.sysconf(name) * page for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    return f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} GiB of it unused"


def _gpu() -> str:
    if why := gpus.why_none():
        return f"none: {why}"
    import torch

    count = torch.cuda.device_count()
    return f"{count} x {torch.cuda.get_device_name(0)} (CUDA {torch.version.cuda})"


def _devices() -> dict[str, str]:
    where = choose("auto", None)
    return {"with --device auto": f"{', '.join(where.names)}: {where.why}", "default of --device": DEFAULT}


def _extension() -> dict[str, str]:
    why = kernels.why_no_cpu_extension()
    if why is not None:
        return {"fastmerge._C": f"missing: {why}"}
    module = kernels.cpu_extension()
    return {
        "fastmerge._C": str(module.__file__),
        "instruction set": f"{module.isa()} (runs here: {', '.join(module.available_isas())})",
        "threads": str(module.get_threads()),
    }


def _choices(kind: str) -> dict[str, str]:
    return {name: _choice(op, kind) for name, op in sorted(kernels.OPERATIONS.items())}


def _choice(op: Any, kind: str) -> str:
    try:
        name, reason = op.choose(kind)
    except kernels.BackendError as error:
        return f"none: {error}"
    if why := kernels.why_no_cpu_extension():
        reason = reason.replace(why, "see extension")  # said once, above
    text = f"{name} ({reason})"
    together, reason = op.choose(kind, many=True)
    return text if together == name else f"{text}; several tensors in one call: {together} ({reason})"


def _environment() -> dict[str, str]:
    facts = {name: f"{os.environ.get(name, 'not set')}: {use}" for name, use in VARIABLES.items()}
    for name in sorted(os.environ):
        if name.startswith("FASTMERGE_") and name not in VARIABLES:
            facts[name] = f"{os.environ[name]}: not a variable of fastmerge; check its spelling"
    return facts
