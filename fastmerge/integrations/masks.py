"""The random masks that ``torch.bernoulli`` draws on the CPU, from torch's own generator and in its order."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Elements that are drawn at a time. The generator is asked for one number per element, whatever the blocks are.
_BLOCK = 1 << 20


class Mask(NamedTuple):
    """A mask of the elements that are kept: [n] bool, flat, and the device where it is wanted."""

    kept: Tensor
    device: torch.device

    def packed(self) -> Tensor:
        """Return it as ``kernels.keep_masked`` takes it: a bit per element in int32 words, on its device."""
        import numpy as np

        packed = np.packbits(self.kept.numpy(), bitorder="little")
        words = np.zeros(-(-self.kept.numel() // 32) * 4, dtype=np.uint8)
        words[: packed.size] = packed
        return torch.from_numpy(words.view(np.int32)).to(self.device)


def draw(like: Tensor, density: float) -> Mask:
    """Return the next mask that ``torch.bernoulli`` would draw for a tensor shaped like ``like``, on the CPU.

    It keeps an element where a uniform float32 number lies below the density, which is first rounded to the dtype in
    which both mergekit and PEFT draw: bfloat16 for bfloat16, float32 for others.
    """
    drawn_in = torch.bfloat16 if like.dtype is torch.bfloat16 else torch.float32
    bound = torch.tensor(density, dtype=drawn_in).float()
    kept = torch.empty(like.numel(), dtype=torch.bool)
    for start in range(0, like.numel(), _BLOCK):
        block = kept[start : start + _BLOCK]
        torch.lt(torch.rand(block.numel()), bound, out=block)
    return Mask(kept, like.device)
