"""Matrices of one shape, of one tensor or of several, that are changed as a batch.

A GPU takes many small matrices in little more time than one. A processor gains nothing, so that there each is changed
by itself. How many make a batch depends on their shape alone, not on what memory is free: the last bits of a result may
depend on its batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..kernels.spectral import Info
    from .apply import MatrixPart

# Kinds of devices where a batch pays.
BATCHING = {"cuda"}
# What the change of a batch takes: 36 matrices of 2048 x 768, 8 of 8192 x 1024, one of 8192 x 8192.
STACK_BYTES = 2 << 30


class Stack(ABC):
    """A change of many matrices. Equal ones make the same change, and may be given their matrices together."""

    @abstractmethod
    def of_many(self, matrices: Tensor, noise: Sequence[float]) -> tuple[Tensor, list[Info]]:
        """Change [b, m, n] float32; ``noise`` is the standard deviation of the rounding noise in each matrix."""

    def __call__(self, matrices: Sequence[Tensor], noise: float) -> tuple[Tensor, list[Info]]:
        """Change the first of ``matrices``, [m, n], by itself."""
        result, infos = self.of_many(matrices[0].unsqueeze(0), [noise])
        return result[0], infos

    def of_part(self, matrix: Tensor, noise: float, part: MatrixPart) -> tuple[Tensor, Info] | None:
        """Change a matrix of which ranks have a part each, where ``Method.together`` says so; None: not certified."""
        raise TypeError(f"{type(self).__name__} changes whole matrices only, though its method says together")


def batches_on(device: torch.device) -> bool:
    """Return whether a batch pays there."""
    return device.type in BATCHING


def matrices_at_once(shape: Sequence[int]) -> int:
    """Return how many matrices [..., m, n] make a batch."""
    n, m = sorted(shape[-2:])
    return max(1, STACK_BYTES // (4 * (6 * m * n + 9 * n * n)))


def batch_bytes(shape: Sequence[int]) -> int:
    """Return what the batches of a tensor's own matrices take on a device beyond the change of one."""
    n, m = sorted(shape[-2:])
    return (min(math.prod(shape[:-2]), matrices_at_once(shape)) - 1) * 4 * (6 * m * n + 9 * n * n)


def alike(keys: Sequence[Hashable | None], counts: Sequence[int], most: Sequence[int]) -> Iterator[list[int]]:
    """Yield the indices of what may be changed together.

    Args:
        keys:   equal for what may; None for what is alone.
        counts: the matrices of each.
        most:   matrices that make a batch.
    """
    open_batches: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        if key is None:
            yield [i]
            continue
        batch = open_batches.setdefault(key, [])
        if batch and sum(counts[j] for j in batch) + counts[i] > most[i]:
            yield batch
            batch = open_batches[key] = []
        batch.append(i)
    yield from open_batches.values()


def change_together(stack: Stack, parts: Sequence[tuple[Tensor, float, list[Info]]]) -> None:
    """Change matrices in their place.

    Args:
        parts: of each tensor its matrices [b, m, n] of one shape, their noise, and the list that takes what was done.
    """
    import torch

    everything = [(matrix, noise, infos) for matrices, noise, infos in parts for matrix in matrices]
    size = matrices_at_once(everything[0][0].shape)
    for start in range(0, len(everything), size):
        some = everything[start : start + size]
        results, found = stack.of_many(torch.stack([matrix for matrix, _, _ in some]), [noise for _, noise, _ in some])
        for (matrix, _, infos), result, info in zip(some, results, found, strict=True):
            matrix.copy_(result)
            infos.append(info)
