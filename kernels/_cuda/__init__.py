"""The compiled CUDA extension ``fastmerge._cuda``: found on first use, and the reason when it cannot run.

Every kernel returns the bits of the reference in the file of its operation.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import TYPE_CHECKING

from .. import _native
from .._registry import permitted

if TYPE_CHECKING:
    from torch import Tensor


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    try:
        from fastmerge import _cuda
    except ImportError as error:
        return None, f"the extension fastmerge._cuda is missing ({error}); install fastmerge where nvcc is found"
    return _cuda, _cuda.why_unavailable() or _native.why_outdated(_cuda)


def extension() -> ModuleType:
    """Return ``fastmerge._cuda``; call only after ``why_unavailable()`` returned None."""
    module, why = _load()
    if module is None:
        raise RuntimeError(why)
    return module


def why_unavailable() -> str | None:
    """Return the reason why the CUDA backend cannot run, or None."""
    return _load()[1]


def serves(tensor: Tensor) -> bool:
    """Return whether the extension does on the device of ``tensor`` what the host does elsewhere."""
    return permitted("cuda", tensor.device) and why_unavailable() is None


def stream(tensor: Tensor) -> tuple[int, int]:
    """Return ``(device index, stream)`` that an operation on ``tensor`` runs on."""
    import torch

    if tensor.device.type != "cuda":  # the emulator of the tests
        return 0, 0
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream
