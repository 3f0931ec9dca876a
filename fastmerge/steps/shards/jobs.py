"""Jobs: tensors of which every rank merges a part, and the windows in which many of them are surveyed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..driver import Job
from ..inputs import Inputs
from ..method import Group, Method
from ..source import Resident
from .layout import Layout

# Bytes of all local parts of tensors that are surveyed together, and how many these are at most. Of tensors that are
# dealt out: bytes of the whole inputs that one rank merges at a time.
WINDOW_BYTES, WINDOW_TENSORS = 64 << 20, 64
# What a rank may need for one matrix that it merges whole, where all ranks could merge it together.
RANK_BYTES = 32 << 30


@dataclass(frozen=True, eq=False)
class ShardJob:
    """One output tensor of many, of which this rank merges its part.

    Attributes:
        group:  what the method is told of the whole tensor.
        inputs: the local parts, contiguous, of one shape.
        out:    the local part of the output; it may be an input, not one of another job.
        layout: how the tensor lies on the mesh.
    """

    method: Method
    group: Group
    inputs: Inputs[Tensor]
    out: Tensor
    layout: Layout

    @property
    def alone(self) -> bool:
        """True when every rank merges its tensor without asking another one."""
        return self.layout.whole and not self.method.censuses(self.group)

    @property
    def at_once(self) -> bool:
        """True when the method takes no part of the tensor: it is dealt to a rank, which merges it whole."""
        return self.method.scratch_bytes(self.group) is not None and not self.by_slices

    @property
    def by_slices(self) -> bool:
        """True when a tensor that has to come whole is cut between slices of which each rank merges its own."""
        cut = self.layout.cut
        return bool(cut) and cut <= set(self.method.by_slices(self.group))

    @property
    def apart(self) -> bool:
        """True when a tensor that has to come whole is cut between slices that are merged each for itself."""
        return self.layout.cut <= set(self.method.apart(self.group)) and not self.method.censuses(self.group)

    @property
    def together(self) -> bool:
        """True for a matrix that all ranks merge together, since one would need more than ``RANK_BYTES`` for it.

        The method can merge it by parts, and it is cut along its longer side alone.
        """
        large = self.at_once and self.rank_bytes > RANK_BYTES
        return large and self.layout.long_side is not None and self.method.together(self.group)

    @property
    def rank_bytes(self) -> int:
        """Bytes that a rank needs which merges the tensor whole."""
        return self.whole_bytes + (self.method.scratch_bytes(self.group) or 0)

    @property
    def local(self) -> Job:
        """The job of the local part, as if it were a tensor of its own."""
        group = replace(self.group, shape=tuple(self.out.shape)) if self.at_once else self.group
        return Job(self.method, group, Resident.of(self.inputs), self.out)

    @property
    def whole_bytes(self) -> int:
        """Bytes of all inputs and the output, whole."""
        return sum(tensor.element_size() for tensor in (*self.inputs.every, self.out)) * self.group.numel


def windows(jobs: Sequence[ShardJob], ranks: int) -> Iterator[list[ShardJob]]:
    """Deal jobs into windows, of sizes that all ranks see alike."""
    window: list[ShardJob] = []
    filled = 0
    for job in jobs:
        nbytes = sum(tensor.element_size() for tensor in job.inputs.every) * job.group.numel // ranks
        device = window[0].out.device if window else job.out.device
        if window and (filled + nbytes > WINDOW_BYTES or len(window) == WINDOW_TENSORS or job.out.device != device):
            yield window
            window, filled = [], 0
        window.append(job)
        filled += nbytes
    if window:
        yield window


def named(jobs: Sequence[ShardJob]) -> str:
    """Return the names of jobs, in few words."""
    if not jobs:
        return "nothing"
    first, last = jobs[0].group.name, jobs[-1].group.name
    return first + (f" .. {last} ({len(jobs)} tensors)" if len(jobs) > 1 else "")
