"""What the integrations count: calls of another package's functions that were served here, or left to it and why."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Uncovered(Exception):
    """A call is left to the package's own function; the text says why, in one line."""

    @classmethod
    def refused(cls, error: Exception) -> Uncovered:
        """Return that fastmerge refuses the arguments."""
        return cls("refused: " + "; ".join(str(error).splitlines()))


def check_plain(tensors: Sequence[Tensor]) -> None:
    """Raise ``Uncovered`` unless the kernels can take tensors together: alike, floats in memory, without gradients."""
    import torch

    from .. import kernels

    floats = [dtype.torch for dtype in kernels.FLOATS]
    for tensor in tensors:
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise Uncovered("gradients are asked for")
        if why := kernels.why_not_plain(tensor):
            raise Uncovered(f"a tensor {why}")
        if tensor.dtype not in floats:
            raise Uncovered(f"dtype {tensor.dtype}")
        if tensor.dtype != tensors[0].dtype or tensor.shape != tensors[0].shape:
            raise Uncovered("tensors of different dtypes or shapes")
        if not tensor.numel() or not tensor.dim():
            raise Uncovered("no elements" if not tensor.numel() else "a scalar")


class Report:
    """How many calls were served here, by function, and how many fell back, by function and reason."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.served: Counter[str] = Counter()
        self.fell_back: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def count(self, function: str, why_not: str | None = None) -> None:
        """Count one call, served where there is no reason against it. Threads may count at the same time."""
        with self._lock:
            if why_not is None:
                self.served[function] += 1
            else:
                self.fell_back[function, why_not] += 1

    def __str__(self) -> str:
        served, fallen = self.served.total(), self.fell_back.total()
        lines = [f"fastmerge served {served} of {served + fallen} calls of {self.package}"]
        lines += [f"  {function}: {count}" for function, count in sorted(self.served.items())]
        if fallen:
            lines.append(f"left to {self.package}: {fallen}")
            lines += [f"  {function}: {count} ({why})" for (function, why), count in sorted(self.fell_back.items())]
        return "\n".join(lines)
