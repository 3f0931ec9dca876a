"""Dealing: tensors that a method takes whole go to one rank each, are merged there, and their parts come back.

Each rank holds one whole tensor at a time, or several small ones. What it merges it merges as one process does that
holds all of them, so that the bits are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from ..census import Round
from ..driver import Job, merge_sources
from ..inputs import Inputs
from ..source import Resident
from .jobs import WINDOW_BYTES, ShardJob, named
from .ranks import Agreement, Ranks

Turn = Sequence[Sequence[ShardJob]]
"""What the ranks merge at the same time, in the order of the mesh."""


def merge_dealt(jobs: Sequence[ShardJob], ranks: Ranks, agreement: Agreement) -> None:
    """Merge tensors whole, each on one rank. A collective call."""
    for turn in turns(jobs, len(ranks)):
        _scatter(turn, _merged(turn, ranks, agreement), ranks, agreement)


def _merged(turn: Turn, ranks: Ranks, agreement: Agreement) -> list[Tensor]:
    """Return the whole tensors that this rank merges at a turn."""
    ranks.doing = f"gathering {_told(turn, ranks)}"
    whole = [
        Job(job.method, job.group, Resident.of(inputs), job.out.new_empty(job.group.shape))
        for job, inputs in zip(turn[ranks.position], _gathered(turn, ranks, agreement), strict=True)
    ]
    ranks.doing = f"merging {_told(turn, ranks)}"
    merge_sources(whole)
    return [job.out for job in whole]


def ask_dealt(jobs: Sequence[ShardJob], found: dict[str, Any], ranks: Ranks, agreement: Agreement) -> Round:
    """Return a round of a census over tensors that are surveyed whole, each by one rank. A collective call."""
    own = Round()
    for turn in turns(jobs, len(ranks)):
        ranks.doing = f"surveying {_told(turn, ranks)}"
        given = _gathered(turn, ranks, agreement)
        for job, inputs in zip(turn[ranks.position], given, strict=True):
            own.ask(job.method, replace(job.group, censuses=found), Resident.of(inputs))
    agreement.check()
    taken = Round()
    for parts in ranks.everyone(own.parts):
        taken.add(parts)
    return taken


def deal(costs: Sequence[float], ranks: int) -> list[int]:
    """Return the rank of each cost: the largest first, to the rank that has least. At most 4/3 of the best balance."""
    loads, owners = [0.0] * ranks, [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owner = min(range(ranks), key=loads.__getitem__)
        owners[index] = owner
        loads[owner] += costs[index]
    return owners


def turns(jobs: Sequence[ShardJob], ranks: int) -> list[Turn]:
    """Deal jobs out by cost; all ranks see the same turns."""
    owners = deal([job.method.cost(job.group) for job in jobs], ranks)
    hands = [[job for job, owner in zip(jobs, owners, strict=True) if owner == rank] for rank in range(ranks)]
    return [tuple(turn) for turn in zip_longest(*map(_batches, hands), fillvalue=())]


def _batches(hand: Sequence[ShardJob]) -> list[list[ShardJob]]:
    """Return what a rank merges at a time, the largest first: so ranks have tensors of about one size together."""
    batches: list[list[ShardJob]] = []
    filled = WINDOW_BYTES
    for job in sorted(hand, key=lambda job: -job.whole_bytes):
        if filled + job.whole_bytes > WINDOW_BYTES:
            batches.append([])
            filled = 0
        batches[-1].append(job)
        filled += job.whole_bytes
    return batches


def _device(turn: Turn) -> torch.device:
    return next(job.out.device for jobs in turn for job in jobs)


def _told(turn: Turn, ranks: Ranks) -> str:
    return ", ".join(f"{named(jobs)} on rank {ranks[i]}" for i, jobs in enumerate(turn) if jobs)


def _gathered(turn: Turn, ranks: Ranks, agreement: Agreement) -> list[Inputs[Tensor]]:
    """Return the whole inputs of what this rank merges at a turn."""
    here, mine = ranks.position, turn[ranks.position]
    sends = {
        owner: [tensor for job in jobs if _gives(job, here, owner) for tensor in job.inputs.every]
        for owner, jobs in enumerate(turn)
    }
    kinds = {
        peer: [
            (job.layout.part_shape(peer), tensor.dtype)
            for job in mine if _gives(job, peer, here)
            for tensor in job.inputs.every
        ]
        for peer in range(len(ranks))
    }  # fmt: skip
    whole = [job.inputs if job.layout.whole else _empty_inputs(job) for job in mine]
    received = ranks.exchange(sends, kinds, _device(turn), agreement)
    for peer in range(len(ranks)):
        arrived = received.pop(peer)
        for job, inputs in zip(mine, whole, strict=True):
            blocks = job.layout.blocks(peer) if _gives(job, peer, here) else []
            for tensor in inputs.every if blocks else ():
                part = next(arrived)
                for block in blocks:
                    tensor[block.whole] = part[block.part]
    return whole


def _scatter(turn: Turn, merged: Sequence[Tensor], ranks: Ranks, agreement: Agreement) -> None:
    """Send the parts of what this rank merged to those that hold them, and write what arrives here."""
    done = list(zip(turn[ranks.position], merged, strict=True))
    sends = {peer: [_part(job, whole, peer) for job, whole in done] for peer in range(len(ranks))}
    kinds = {owner: [(tuple(job.out.shape), job.out.dtype) for job in jobs] for owner, jobs in enumerate(turn)}
    received = ranks.exchange(sends, kinds, _device(turn), agreement)
    for owner, jobs in enumerate(turn):
        for job, part in zip(jobs, received.pop(owner), strict=True):
            job.out.copy_(part)


def _gives(job: ShardJob, peer: int, owner: int) -> bool:
    """Return True where a rank sends its part: those of the owner's copy do, and nobody where all hold the whole."""
    layout = job.layout
    return not layout.whole and layout.of_one_copy(peer, owner) and math.prod(layout.part_shape(peer)) > 0


def _empty_inputs(job: ShardJob) -> Inputs[Tensor]:
    shape = job.group.shape
    return job.inputs.map(lambda tensor: torch.empty(shape, dtype=tensor.dtype, device=tensor.device))


def _part(job: ShardJob, whole: Tensor, peer: int) -> Tensor:
    """Return a rank's part of a whole tensor, contiguous."""
    part = whole.new_empty(job.layout.part_shape(peer))
    for block in job.layout.blocks(peer):
        part[block.part] = whole[block.whole]
    return part
