"""``python -m tests.fuzz --atheris``: the same cases, chosen by Atheris, which looks for ones that run other code.

Atheris (https://github.com/google/atheris) hands out bytes; every choice that ``write`` makes takes some of them. It
stops at the first finding, whose files are kept.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from random import Random


class Chosen(Random):
    """Random numbers that are read from bytes; zeros behind their end."""

    def __init__(self, data: bytes):
        super().__init__(0)
        self._data, self._at = data, 0

    def getrandbits(self, k: int, /) -> int:
        """Return ``k`` bits."""
        size = (k + 7) // 8
        piece = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(piece, "little") & ((1 << k) - 1)

    def random(self) -> float:
        """Return a number from 0 to 1."""
        return self.getrandbits(53) / (1 << 53)


def guided(name: str, seed: int, cases: int, keep: Path) -> int:
    """Run the cases of one target; does not return: libFuzzer ends the process, with status 77 after a finding."""
    try:
        import atheris
    except ImportError:
        print("atheris is not installed: pip install atheris (wheels for CPython on Linux and x86-64)", file=sys.stderr)
        return 2
    os.environ["HF_HUB_OFFLINE"] = "1"
    with atheris.instrument_imports(include=["fastmerge"], enable_loader_override=False):
        import torch

        from fastmerge.methods import all_methods

        from .targets import TARGETS
        from .watching import Finding, watched
    torch.set_num_threads(1)
    all_methods()
    target = TARGETS[name]
    place = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)) / "case"

    def one(data: bytes) -> None:
        place.mkdir()
        try:
            target.write(Chosen(data), place)
            with watched(place):
                target.use(place)
        except Finding:
            shutil.copytree(place, keep / f"{name}-atheris", symlinks=True, dirs_exist_ok=True)
            raise
        finally:
            shutil.rmtree(place)

    keep.mkdir(parents=True, exist_ok=True)
    flags = [f"-runs={cases}", f"-seed={seed + 1}", "-max_len=512", "-len_control=0", f"-artifact_prefix={keep}/"]
    atheris.Setup([sys.argv[0], *flags], one)
    atheris.Fuzz()
    return 0
