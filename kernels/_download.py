"""The one way in which small results come from a GPU: begun at once, waited for when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .strip import on_host

if TYPE_CHECKING:
    from torch import Tensor


def download(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a tensor to the host; the function that is returned waits for it and returns it."""
    import torch

    if tensor.device.type != "cuda":  # the emulator of the tests
        return lambda: tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.current_stream(tensor.device).record_event()

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait


def download_all(tables: Sequence[Tensor]) -> Callable[[], list[np.ndarray]]:
    """Begin to copy tables of one dtype and device to the host, together; the function that is returned waits."""
    import torch

    wait = download(torch.cat([table.flatten() for table in tables]))
    shapes = [table.shape for table in tables]

    def split() -> list[np.ndarray]:
        parts = np.split(on_host(wait()), np.cumsum([shape.numel() for shape in shapes])[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    return split
