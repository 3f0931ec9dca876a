"""mergekit as a peer: its functions in an interpreter of its own, on the same tensors."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file
from torch import Tensor

if TYPE_CHECKING:
    from .kernels.cases import Case


class MergekitPeer:
    """A process that has the tensors and merges them when it is asked to."""

    def __init__(self, python: str, tensors: list[Tensor], threads: int, folder: Path, device: str = "cpu"):
        path, self._saved = folder / "tensors.safetensors", folder / "out.safetensors"
        save_file({str(i): tensor.cpu() for i, tensor in enumerate(tensors)}, path)
        worker = Path(__file__).with_name("kernels") / "mergekit_worker.py"
        self.process = subprocess.Popen(
            [python, worker, path, str(threads), device], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()
        path.unlink()

    def merge(self, case: Case, save: Path | None = None) -> float:
        """Merge once and return the seconds that mergekit's function took."""
        request = {
            "method": case.method, "parameters": case.values, "inputs": case.inputs,
            "base_index": 0 if case.has_base else None, "columns": case.columns, "save": str(save) if save else None,
        }  # fmt: skip
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return float(self._answer())

    def contender(self, case: Case, base: Tensor, out: Tensor) -> Callable[[], float]:
        """Return the clock of a merge. Its first run is compared with ``out``, if it can be: see ``check_peers``."""
        unchecked = [self._saved] if case.near else []

        def measure() -> float:
            if not unchecked:
                return self.merge(case)
            seconds = self.merge(case, unchecked[0])
            check_peers(case.method, base, out, {"mergekit": load_file(unchecked.pop())["merged"].to(out.device)})
            return seconds

        return measure

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("mergekit's worker ended early; its error is above")
        return line


def check_peers(method: str, base: Tensor, out: Tensor, results: Mapping[str, Tensor]) -> None:
    """Raise AssertionError unless the results of the peers, by tool, lie about as far from the base as ``out`` does.

    The peers round every step to bfloat16, break ties and draw random numbers in their own way, so that single
    elements differ and rounding adds some per cent to the size of what was added to the base.
    """
    size = (out.float() - base).norm()
    for tool, result in results.items():
        other = (result.float() - base).norm()
        assert abs(other - size) < 0.1 * size, (
            f"{method}: {tool} moves the base by {other:.4g}, fastmerge by {size:.4g}"
        )
