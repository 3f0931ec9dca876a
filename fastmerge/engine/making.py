"""Inputs whose values come from no file: bytes that planning made, and random numbers by counter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..plan.types import InputTensor

if TYPE_CHECKING:
    from torch import Tensor

# Elements that are drawn at once.
_STEP = 1 << 16


class MadeValues:
    """A made tensor. Any number of threads may read it.

    Random numbers depend on seed, name and index of the element: each is a 32-bit word w of Philox, as u = (w + 1/2) /
    2**32. "normal" is the quantile of u in float64, "uniform" is bound * (2 u - 1); both are rounded once.
    """

    def __init__(self, tensor: InputTensor):
        assert tensor.made is not None
        self._made, self._dtype = tensor.made, tensor.dtype

    def open(self) -> None:
        pass

    def read(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` with the bytes from ``offset`` on, both multiples of an element."""
        if not len(into):
            return
        if self._made.kind == "given":
            np.frombuffer(into, np.uint8)[:] = np.frombuffer(self._made.data, np.uint8, len(into), offset)
            return
        import torch

        out = torch.frombuffer(into, dtype=self._dtype.torch)
        at = offset // self._dtype.itemsize
        for start in range(0, len(out), _STEP):
            part = out[start : start + _STEP]
            part.copy_(self._drawn(at + start, len(part)))

    def _drawn(self, at: int, count: int) -> Tensor:
        import torch

        from ..kernels import random_words, tensor_key

        words = random_words(tensor_key(self._made.seed, self._made.name), 0, at, count)
        uniform = (words.double() + 0.5) / 2**32
        if self._made.kind == "normal":
            return torch.special.ndtri(uniform)
        return self._made.bound * (2 * uniform - 1)
