"""For which GPUs a file holds kernels: of made bytes, and of the CUDA kernels as NVIDIA's own tool lists them."""

from __future__ import annotations

import importlib.util
import re
import struct
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from fastmerge.reports.fatbin import architectures


def container(*parts):
    """Return a fatbin whose parts are (kind, architecture, bytes)."""
    body = b""
    for kind, arch, nbytes in parts:
        body += struct.pack("<HHIQIIHHI", kind, 0x101, 64, nbytes, 0, 0, 0, 1, arch) + bytes(32) + b"x" * nbytes
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def test_machine_code_and_intermediate_code_by_architecture(tmp_path):
    file = tmp_path / "kernels.so"
    own = container((2, 90, 8), (2, 80, 16), (1, 90, 24))
    file.write_bytes(b"ELF" + own + bytes(5) + container((2, 75, 8)) + own * 2 + bytes(64))
    assert architectures(str(file)) == ([80, 90], [90])
    magic = own[:4]
    huge = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 2**40) + bytes(100)
    for broken in (own[:20], huge, b"no kernels", magic, magic + bytes(60)):
        file.write_bytes(broken)
        assert architectures(str(file)) == ([], [])


def cuobjdump():
    """Return the tool, as Triton brings it; None without it."""
    triton = importlib.util.find_spec("triton")
    path = (
        Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump" if triton and triton.origin else None
    )
    return path if path and path.exists() else None


@pytest.mark.skipif(importlib.util.find_spec("fastmerge._cuda") is None, reason="the CUDA kernels are not built")
@pytest.mark.skipif(cuobjdump() is None, reason="cuobjdump, which Triton brings, is not installed")
def test_what_nvidias_tool_lists():
    file = importlib.util.find_spec("fastmerge._cuda").origin
    listed = subprocess.run([cuobjdump(), "--list-elf", "--list-ptx", file], capture_output=True, text=True).stdout
    counts = Counter(re.findall(r"\.sm_(\d+)a?\.(cubin|ptx)", listed))
    own = {part for part, count in counts.items() if 2 * count >= max(counts.values())}
    machine, intermediate = architectures(file)
    assert {*((str(a), "cubin") for a in machine), *((str(a), "ptx") for a in intermediate)} == own
