"""mergekit as a peer: its functions in an interpreter of its own, on the same tensors."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor

if TYPE_CHECKING:
    from .kernels.cases import Case


class MergekitPeer:
    """A process that is given tensors, by files in ``folder``, and merges them when it is asked to."""

    def __init__(self, python: str, folder: Path, threads: int, device: str = "cpu"):
        self._given, self._saved = folder / "tensors.safetensors", folder / "out.safetensors"
        worker = Path(__file__).with_name("_mergekit_worker.py")
        self.process = subprocess.Popen(
            [python, worker, str(threads), device], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def give(self, tensors: Sequence[Tensor]) -> None:
        """Hand over the inputs of the merges that follow, a base first."""
        save_file({str(i): tensor.cpu().contiguous() for i, tensor in enumerate(tensors)}, self._given)
        self._ask(load=str(self._given))

    def merge(
        self, method: str, values: Mapping[str, Any], inputs: int, has_base: bool, columns: int | None = None,
        save: bool = False,
    ) -> float:  # fmt: skip
        """Merge the first inputs once and return the seconds that mergekit's function took."""
        return self._ask(
            method=method, parameters=values, inputs=inputs, base_index=0 if has_base else None, columns=columns,
            save=str(self._saved) if save else None,
        )  # fmt: skip

    def saved(self) -> tuple[Tensor, list[Tensor]]:
        """Return the result of the last merge that was to be saved, and the masks that it drew."""
        found = load_file(self._saved)
        return found["merged"], [found[f"mask{i}"].bool() for i in range(len(found) - 1)]

    def contender(self, case: Case, base: Tensor, out: Tensor) -> Callable[[], float]:
        """Return the clock of a merge. Its first run is compared with ``out``, if it can be: see ``check_peers``."""
        unchecked = [out] if case.near else []

        def measure() -> float:
            save = bool(unchecked)
            seconds = self.merge(case.method, case.values, case.inputs, case.has_base, case.columns, save)
            if save:
                own = unchecked.pop()
                check_peers(case.method, base, own, {"mergekit": self.saved()[0].to(own.device)})
            return seconds

        return measure

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _ask(self, **request: object) -> float:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("mergekit's worker ended early; its error is above")
        return float(line)


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
