"""What a launcher, such as torchrun, says to a process that it starts: its place among ranks, and where they meet."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from ..errors import FastmergeError

if TYPE_CHECKING:
    from torch.distributed import Store

PIECE = 4 << 20
"""Bytes of a value that are stored at once. A store of torch refuses more than 8 MiB, and ends with it."""


@dataclass(frozen=True)
class Place:
    """The place of a process among those that a launcher started.

    Attributes:
        rank, count: of all.
        local_rank, local_count: on this machine.
        address, port: of the store.
    """

    rank: int
    count: int
    local_rank: int
    local_count: int
    address: str
    port: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place:
        """Read the variables that torchrun sets; FastmergeError names those that are missing or no place."""
        needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        if missing := [name for name in needed if not environment.get(name)]:
            raise FastmergeError(
                f"--distributed: {', '.join(missing)} not set; start with torchrun, such as"
                " torchrun --nproc-per-node 2 -m fastmerge merge RECIPE OUT --distributed"
            )
        try:
            rank, count, port = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
            local = int(environment.get("LOCAL_RANK", 0)), int(environment.get("LOCAL_WORLD_SIZE", 1))
        except ValueError as error:
            raise FastmergeError(f"--distributed: the launcher's environment holds no numbers: {error}") from error
        if not (0 <= rank < count and 0 <= local[0] < local[1] and 0 < port < 65536):
            raise FastmergeError(
                f"--distributed: RANK {rank} of WORLD_SIZE {count}, LOCAL_RANK {local[0]} of LOCAL_WORLD_SIZE"
                f" {local[1]} at MASTER_PORT {port} is no place among ranks"
            )
        return cls(rank, count, *local, environment["MASTER_ADDR"], port)


def own_devices(count: int, local_rank: int, local_count: int) -> str:
    """Return the GPUs of ``count`` that a rank takes of those on its machine: its share, or one that it shares."""
    own: Sequence[int] = range(local_rank, count, local_count) or [local_rank % count]
    return ",".join(f"cuda:{index}" for index in own)


def put(store: Store, key: str, value: bytes) -> None:
    """Store a value, in pieces: that which says how long it is comes last."""
    for start in range(PIECE, len(value), PIECE):
        store.set(f"{key}+{start}", value[start : start + PIECE])  # type: ignore[arg-type]
    store.set(key, b"%d " % len(value) + value[:PIECE])  # type: ignore[arg-type]


def take(store: Store, key: str, readers: int) -> bytes:
    """Return a value that was ``put``; the last of so many readers removes it."""
    length, first = bytes(store.get(key)).split(b" ", 1)
    more = [f"{key}+{start}" for start in range(PIECE, int(length), PIECE)]
    value = first + b"".join(bytes(store.get(piece)) for piece in more)
    if readers == 1 or store.add(f"{key}+read", 1) == readers:
        for piece in (key, *more, *([f"{key}+read"] if readers > 1 else [])):
            store.delete_key(piece)
    return value


def connected(place: Place, timeout: float) -> Store:
    """Return the store where the ranks meet, with names for this attempt of the launcher."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # what goes wrong is told once, by us
    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    host = f"[{place.address}]" if ":" in place.address else place.address
    url = f"tcp://{host}:{place.port}?rank={place.rank}&world_size={place.count}"
    try:
        store, *_ = next(rendezvous(url, timeout=timedelta(seconds=timeout)))
    except (RuntimeError, ValueError) as error:
        raise FastmergeError(
            f"rank {place.rank} of {place.count} met no others at {place.address}:{place.port}"
            f" within {timeout:g} s: {error}"
        ) from error
    return PrefixStore(f"fastmerge/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
