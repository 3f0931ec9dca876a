"""All that the engine asks of ``torch.cuda``: its only lines that a machine without a GPU cannot run.

Tests give the engine another object with the methods of ``Cuda``, whose device is the processor.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from typing import TYPE_CHECKING

from ..errors import BudgetError, FastmergeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# cudaHostRegisterPortable: pinned for every GPU.
_PORTABLE = 1

# Bytes that are copied to measure the bus.
UPLOADED = 64 << 20

# ROCm's devices, on Linux itself and in WSL.
_OF_AMD = ("/dev/kfd", "/dev/dxg")


def why_none() -> str | None:
    """Return the reason why there is no GPU to compute on, or None. Without a driver torch is not asked, nor loaded."""
    if why := why_no_driver():
        return why
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built without CUDA and ROCm"
    if not torch.cuda.is_available():
        return "torch finds no GPU or no driver"
    return None


def why_no_driver() -> str | None:
    """Return why no driver of GPUs can be here, or None where there is one, or where only torch can tell."""
    if not sys.platform.startswith("linux") or any(map(os.path.exists, _OF_AMD)):
        return None
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return f"no driver of GPUs is installed (neither libcuda.so.1 nor {' nor '.join(_OF_AMD)} is here)"
    return None


def visible() -> list[torch.device]:
    """Return every GPU that this process may use (``CUDA_VISIBLE_DEVICES``)."""
    import torch

    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


def upload_rate(device: torch.device) -> float:
    """Return the bytes per second of copies from pinned memory to a GPU: the fastest of a few."""
    import torch

    with torch.cuda.device(device):
        host = torch.empty(UPLOADED, dtype=torch.uint8, pin_memory=True)
        there = torch.empty(UPLOADED, dtype=torch.uint8, device=device)
        best = 0.0
        for _ in range(4):
            torch.cuda.synchronize(device)
            begin = time.perf_counter()
            there.copy_(host, non_blocking=True)
            torch.cuda.synchronize(device)
            best = max(best, UPLOADED / (time.perf_counter() - begin))
    return best


class Cuda:
    """What the engine needs of GPUs beside the operations."""

    def free_bytes(self, device: torch.device) -> int:
        """Return the bytes of a GPU that nobody uses."""
        import torch

        return torch.cuda.mem_get_info(device)[0]

    def pin(self, device: torch.device, address: int, nbytes: int) -> None:
        """Lock host memory in place, so that copies run beside the processor's work and at full speed.

        It holds for all devices. ``device`` is one of those in use: CUDA would take memory of the first one otherwise.
        """
        import torch

        with torch.cuda.device(device):
            status = int(torch.cuda.cudart().cudaHostRegister(address, nbytes, _PORTABLE))
        if status:
            with contextlib.suppress(RuntimeError):  # who launches next would be told of this error once more
                torch.zeros(1, device=device)
            raise BudgetError(
                f"{nbytes} bytes of host memory cannot be pinned for the GPU (CUDA error {status}); "
                "lower --ram, or merge with --device cpu"
            )

    def unpin(self, device: torch.device, address: int) -> None:
        """Undo ``pin``; nothing may be copying."""
        import torch

        with torch.cuda.device(device):
            status = int(torch.cuda.cudart().cudaHostUnregister(address))
        if status:
            raise FastmergeError(f"host memory cannot be unpinned (CUDA error {status})")

    def synchronize(self, device: torch.device) -> None:
        """Wait for everything that was given to a GPU."""
        import torch

        torch.cuda.synchronize(device)

    def return_free_memory(self, device: torch.device) -> None:
        """Give memory that the operations freed back: torch keeps it for the stream that freed it."""
        import torch

        with torch.cuda.device(device):
            torch.cuda.empty_cache()

    def begin_peak(self, device: torch.device) -> None:
        """Measure ``peak_bytes`` from here on."""
        import torch

        torch.cuda.reset_peak_memory_stats(device)

    def peak_bytes(self, device: torch.device) -> int:
        """Return the most bytes that torch's tensors took on a GPU since ``begin_peak``."""
        import torch

        return torch.cuda.max_memory_allocated(device)

    def queue(self, device: torch.device) -> Queue:
        return Queue(device)


class Queue:
    """A stream of one GPU: what it is given runs in order, beside the work of other streams."""

    def __init__(self, device: torch.device):
        import torch

        self._stream = torch.cuda.Stream(device)
        # A thread that waits sleeps instead of spinning: there are more workers than cores.
        self._event = torch.cuda.Event(blocking=True)

    def working(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which operations of this thread go to the stream; ``copy`` needs it too."""
        import torch

        return torch.cuda.stream(self._stream)

    def copy(self, to: Tensor, source: Tensor) -> None:
        """Begin to copy; host memory must be pinned and stay as it is until a later mark has passed."""
        to.copy_(source, non_blocking=True)

    def mark(self) -> None:
        """Remember what the stream was given so far."""
        self._event.record(self._stream)

    def passed(self) -> bool:
        """True when all that came before the last mark is done."""
        return self._event.query()

    def wait(self) -> None:
        """Wait for all that came before the last mark."""
        self._event.synchronize()


def on_current_stream(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context for another thread, in which it works on the stream that is current in this one."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    import torch

    return torch.cuda.stream(torch.cuda.current_stream(device))
