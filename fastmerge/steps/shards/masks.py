"""Masks of slices: each rank makes those of the rows that it holds, and is told those of the cut chunks it surveys."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ...kernels import GRID, mask_words
from ..source import Chunk
from .cuts import cut
from .jobs import ShardJob
from .lockstep import Add

Draw = Callable[[Chunk], Sequence[Tensor]]
"""Makes masks of a run of whole slices, from the multiple of 32 before its first element on."""

# Words of a chunk of the grid.
WORDS = GRID // 32


def sliced_masks(job: ShardJob, count: int, draw: Draw, add: Add) -> tuple[list[Tensor], int]:
    """Return ``count`` masks of all that this rank holds or surveys, and the element with which they begin.

    They go from the first element that this rank holds to its last, and to the ends of the chunks of the grid there.

    The bits of each chunk that several ranks hold parts of, 2 KiB for each mask, are added up over the ranks.
    """
    layout, numel, runs = job.layout, job.group.numel, job.layout.runs
    begin = int(runs.starts[0]) // GRID * WORDS if runs.numel else 0
    end = min(mask_words(numel), -(-int(runs.stops[-1]) // GRID) * WORDS) if runs.numel else 0
    device = job.out.device
    masks = torch.zeros(count, end - begin, dtype=torch.int32, device=device)
    flat = job.inputs.map(lambda tensor: tensor.view(-1))
    for start, stop, place in runs:
        part = flat.map(lambda tensor, at=place, n=stop - start: tensor[at : at + n])  # type: ignore[misc]
        at = start // 32 - begin
        for mask, words in zip(masks, draw(Chunk.of(part, start)), strict=True):
            mask[at : at + len(words)] |= words
    _, fragments = cut(layout.every, numel)
    numbers = np.unique(fragments.starts // GRID)
    places = (numbers * WORDS - begin).tolist()
    here = {i: slice(at, at + WORDS) for i, at in enumerate(places) if 0 <= at < end - begin}
    bits = np.zeros((len(numbers), count, WORDS), np.int32)
    # Of replicas the first one's count.
    for i, span in here.items() if layout.is_first(layout.here) else ():
        own = masks[:, span].cpu().numpy()
        bits[i, :, : own.shape[1]] = own
    # No two ranks hold one bit, so that a sum carries nothing.
    every = add(bits.view(np.int64)).view(np.int32)
    for i, span in here.items():
        masks[:, span] = torch.from_numpy(every[i, :, : masks[:, span].shape[1]]).to(device)
    return list(masks), 32 * begin
