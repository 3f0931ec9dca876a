r"""Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011), keyed by seed and tensor name.

A draw depends only on (seed, tensor name, model, global element index): not on the device, the
chunking, the order of tensors or the number of shards. Nothing is stored; a mask is recomputed
wherever it is needed.

Element e of model m has a 32-bit word ``w(e)``, built from two 16-bit halves so that almost every
element costs half a draw. With the 16-bit values of the block (e >> 3) taken in order (word 0 low,
word 0 high, word 1 low, ...), the high half is value e & 7 of stream 0 and the low half is value
e & 7 of stream 1. The counter is ``(block low, block high, model, stream)``. The element is dropped iff
``w(e) < drop``, with ``drop = round(p * 2**32)``; stream 1 matters only when the high halves are equal.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["drop_threshold", "keep_mask", "keep_mask_at", "philox4x32", "random_words", "tensor_key"]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def tensor_key(seed: int, name: str) -> int:
    """Return the 64-bit Philox key of a tensor: BLAKE2b of its name, keyed by the seed (64 bit, little-endian)."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; expected 0 <= seed < 2**64")
    digest = hashlib.blake2b(
        name.encode(), digest_size=8, key=seed.to_bytes(8, "little"), person=b"fastmerge.drop"
    ).digest()
    return int.from_bytes(digest, "little")


def drop_threshold(probability: float) -> int:
    """Return the 32-bit threshold of a drop probability in [0, 1]: 0 drops nothing, 2**32 drops everything."""
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"drop probability is {probability}; expected 0 <= p <= 1")
    return round(probability * 2**32)


def philox4x32(counter: Tensor, key: int) -> Tensor:
    """Return Philox4x32-10 of ``counter`` [..., 4] (int64 holding 32-bit words) under a 64-bit key: [..., 4] int64."""
    import torch

    c0, c1, c2, c3 = (counter[..., i] for i in range(4))
    k0, k1 = key & _MASK, key >> 32
    for _ in range(10):
        low0, high0 = _multiply(c0, _MULTIPLIERS[0])
        low1, high1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack([c0, c1, c2, c3], dim=-1)


def _multiply(a: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """Return the low and high 32 bits of ``a * constant``, without exceeding int64."""
    low = a * (constant & 0xFFFF)
    high = a * (constant >> 16)
    middle = (low >> 16) + (high & 0xFFFF)
    return ((middle << 16) | (low & 0xFFFF)) & _MASK, (high >> 16) + (middle >> 16)


def random_words(key: int, model: int, offset: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the 32-bit words (int64, [count]) of the elements offset .. offset + count - 1 of a model."""
    import torch

    first = offset >> 3
    blocks = torch.arange(first, ((offset + count + 7) >> 3), dtype=torch.int64, device=device)
    halves = [_half_words(blocks, key, model, stream) for stream in (0, 1)]
    skip = offset - (first << 3)
    return ((halves[0] << 16) | halves[1])[skip : skip + count]


def _half_words(blocks: Tensor, key: int, model: int, stream: int) -> Tensor:
    import torch

    counter = torch.stack(
        [blocks & _MASK, blocks >> 32, torch.full_like(blocks, model), torch.full_like(blocks, stream)], dim=-1
    )
    words = philox4x32(counter, key)
    return torch.stack([words & 0xFFFF, words >> 16], dim=-1).flatten()


def keep_mask(key: int, model: int, drop: int, offset: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the bool keep mask [count] of the elements from the global index ``offset`` on.

    Args:
        key:    64-bit key of the tensor (``tensor_key``).
        model:  index of the model among the non-base models, 0 <= model < 2**32.
        drop:   32-bit threshold (``drop_threshold``).
        offset: global index of the first element.
        count:  number of elements.
    """
    return random_words(key, model, offset, count, device) >= drop


def keep_mask_at(key: int, model: int, drop: int, index: Tensor) -> Tensor:
    """Return the bool keep mask of elements at any global indices [count] (int64)."""
    values = [_half_words(index >> 3, key, model, stream).view(-1, 8) for stream in (0, 1)]
    high, low = (value.gather(1, (index & 7)[:, None])[:, 0] for value in values)
    return ((high << 16) | low) >= drop
