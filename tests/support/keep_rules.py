"""Keep rules of every kind, for the tests of the sparse merge on GPU backends."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmerge import kernels
from fastmerge.kernels import Boundary, Keep


def _moved(boundary: Boundary, offset: int) -> Boundary:
    split = boundary.break_index < kernels.ALL_EQUAL
    return Boundary(boundary.threshold, boundary.break_index + offset) if split else boundary


def keep_rules(kinds: str, base: Tensor, tensors: list[Tensor], offset: int) -> list[Keep]:
    """One rule per letter: all, top, band, random, ``s`` random whose low half matters often, drop all, masked."""
    numel = base.numel()
    rules = []
    for k, (kind, tensor) in enumerate(zip(kinds, tensors, strict=True)):
        (found,) = kernels.select_boundaries(
            [tensor], base, [[int(0.6 * numel), int(0.1 * numel)]], backend="reference"
        )
        inside, outside = (_moved(boundary, offset) for boundary in found)
        key = kernels.tensor_key(7, "layer.weight")
        rules.append(
            {
                "a": kernels.keep_all(),
                "t": kernels.keep_top(inside),
                "b": kernels.keep_band(inside, outside),
                "r": kernels.keep_random(key, k, kernels.drop_threshold(0.3)),
                "s": kernels.keep_random(key, k, 0x8000),
                "d": kernels.keep_random(key, k, 2**32),
                "m": _mask(offset + numel, k) if kind == "m" else None,
            }[kind]
        )
    return rules


def _mask(numel: int, seed: int) -> Keep:
    """A mask of random bits."""
    words = kernels.mask_words(numel)
    generator = torch.Generator().manual_seed(seed)
    return kernels.keep_masked(torch.randint(-(2**31), 2**31, (words,), generator=generator).to(torch.int32))
