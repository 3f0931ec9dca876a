"""Ranks: what those of a device mesh tell each other. An error on one of them is raised on all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ...errors import ShardError

T = TypeVar("T")

Kind = tuple[tuple[int, ...], torch.dtype]
"""The shape and the dtype of a tensor."""


class Ranks:
    """The ranks of a mesh, in its flattened order.

    Attributes:
        position: of this rank.
        doing:    what is going on, with names of tensors; errors of the transport say it.
    """

    def __init__(self, mesh: DeviceMesh):
        coordinate = mesh.get_coordinate()
        if coordinate is None:
            raise ShardError(
                f"rank {dist.get_rank()} holds no part of tensors on {mesh}; merge on the ranks of the mesh"
            )
        self.shape = tuple(mesh.mesh.shape)
        self.position = int(np.ravel_multi_index(tuple(coordinate), self.shape))
        self.doing = "merging shards"
        self._mesh = mesh
        self._global = mesh.mesh.flatten().tolist()
        # For messages between two ranks: they may lie on no common line of a mesh of several dimensions.
        self._group = mesh.get_group() if mesh.ndim == 1 else None

    def __len__(self) -> int:
        return len(self._global)

    def __getitem__(self, position: int) -> int:
        """The number of a rank in the world."""
        return self._global[position]

    def total(self, state: np.ndarray) -> np.ndarray:
        """Return the sum of int64 ``state`` over all ranks."""

        def add() -> Tensor:
            sums = torch.from_numpy(state).to(self._mesh.device_type, copy=True)
            for group in self._mesh.get_all_groups():
                dist.all_reduce(sums, group=group)
            return sums.cpu()

        return self._talk(add).numpy()

    def total_on_device(self, part: Tensor, agreement: Agreement) -> Tensor:
        """Return the sum of ``part``, on the device of the mesh, over all ranks; it is overwritten."""
        agreement.check()

        def add() -> Tensor:
            for group in self._mesh.get_all_groups():
                dist.all_reduce(part, group=group)
            return part

        return self._talk(add)

    def everyone(self, mine: T) -> list[T]:
        """Return what each rank has given, in their order."""

        def gather() -> list[Any]:
            found: list[Any] = [mine]
            for group in reversed(self._mesh.get_all_groups()):
                told: list[Any] = [None] * dist.get_world_size(group)
                dist.all_gather_object(told, found, group)
                found = [value for part in told for value in part]
            return found

        return self._talk(gather)

    def exchange(
        self,
        sends: Mapping[int, Sequence[Tensor]],
        kinds: Mapping[int, Sequence[Kind]],
        device: torch.device,
        agreement: Agreement,
    ) -> dict[int, Iterator[Tensor]]:
        """Send contiguous tensors to ranks, this one too, while those of ``kinds`` arrive, on ``device``.

        One message to each rank, where there are bytes. All memory is allocated before the ranks agree that they go on:
        one that lacks it leaves none waiting.
        """
        others = [peer for peer in sends if peer != self.position]
        packed = {peer: _packed(sends[peer]) for peer in others}
        arriving = {p: torch.empty(sum(map(_nbytes, kinds[p])), dtype=torch.uint8, device=device) for p in others}
        agreement.check()
        operations = [
            dist.P2POp(call, bits, self[peer], self._group)
            for call, messages in ((dist.isend, packed), (dist.irecv, arriving))
            for peer, bits in messages.items()
            if len(bits)
        ]

        def talk() -> None:
            for request in dist.batch_isend_irecv(operations) if operations else ():
                request.wait()

        self._talk(talk)
        received = {peer: _unpacked(bits, kinds[peer]) for peer, bits in arriving.items()}
        return received | {self.position: iter(sends[self.position])}

    def _talk(self, talk: Callable[[], T]) -> T:
        try:
            return talk()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ShardError(
                f"rank {self[self.position]}: {self.doing}: other ranks of the mesh do not answer; each of them must "
                f"make the same call (the timeout is that of the process group): {error}"
            ) from error


def _nbytes(kind: Kind) -> int:
    return math.prod(kind[0]) * kind[1].itemsize


def _packed(tensors: Sequence[Tensor]) -> Tensor:
    """Return the bytes of tensors, one after the other."""
    bits = [tensor.view(-1).view(torch.uint8) for tensor in tensors]
    return bits[0] if len(bits) == 1 else torch.cat(bits) if bits else torch.empty(0, dtype=torch.uint8)


def _unpacked(bits: Tensor, kinds: Sequence[Kind]) -> Iterator[Tensor]:
    """Yield the tensors whose bytes these are."""
    for part, (shape, dtype) in zip(bits.split([_nbytes(kind) for kind in kinds]), kinds, strict=True):
        # A copy: a slice of bytes may begin where no such number can.
        yield part.clone().view(dtype).view(shape)


class Agreement:
    """A context in which all ranks go on together: what fails on one of them is raised on all when it ends.

    Before ranks exchange anything, they agree (``check``) that none has failed: so none waits for one that did.
    """

    def __init__(self, ranks: Ranks):
        self._ranks = ranks

    def __enter__(self) -> Agreement:
        return self

    def check(self) -> None:
        """Go on if all ranks do; else raise what failed on another one."""
        self._settle(None)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, ShardError) and (error is None or isinstance(error, Exception)):
            self._settle(error)

    def _settle(self, error: Exception | None) -> None:
        ranks = self._ranks
        if not ranks.total(np.array([error is not None], np.int64))[0]:
            return
        told = ranks.everyone(None if error is None else f"{ranks.doing}: {str(error) or type(error).__name__}")
        if error is not None:
            return
        first: dict[str, int] = {}
        for position, message in enumerate(told):
            if message is not None:
                first.setdefault(message, ranks[position])
        raise ShardError("\n".join(f"on rank {rank}: {message}" for message, rank in first.items()))
