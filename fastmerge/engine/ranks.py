"""The processes that share a run. Each one plans it all, merges a share of the tensors, and the first one publishes.

``Ranks`` is a process alone, and what a run asks of its ranks; ``launched_ranks.LaunchedRanks`` is one of several.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence


class Ranks:
    """One process alone.

    Attributes:
        number:  of this process, from 0.
        count:   of all.
        timeout: seconds after which another one that is not heard of counts as dead.
    """

    number = 0
    count = 1
    timeout = 0.0

    @property
    def first(self) -> bool:
        """True for the one that makes the files and publishes them."""
        return self.number == 0

    @property
    def name(self) -> str:
        """How messages call this process."""
        return f"rank {self.number} of {self.count}"

    def collect(self, value: bytes) -> list[bytes]:
        """Give a value to the first rank. It returns the values of all, in their order; the others go on at once."""
        return [value]

    def hear(self, value: bytes) -> bytes:
        """Return the value of the first rank."""
        return value

    def agree(self, value: bytes, combine: Callable[[list[bytes]], bytes]) -> bytes:
        """Return, on every rank, what the first one makes of the values of all."""
        values = self.collect(value)
        return self.hear(combine(values) if self.first else b"")

    def agree_among(
        self,
        some: Sequence[int],
        key: str,
        value: bytes,
        combine: Callable[[list[bytes]], bytes],
        stopped: Callable[[], bool],
    ) -> bytes:
        """Return, on each of ``some`` ranks, what the first of these makes of their values.

        Any thread may call it: ``key`` tells calls apart. FastmergeError when it is ``stopped``.
        """
        return combine([value])

    def tick(self, written: int) -> int:
        """Say how many bytes this rank has written, and return how many all have; raise what ended another one."""
        return written

    def default_threads(self) -> int | None:
        """Return the number of workers where none is given; None leaves it to the run."""
        return None

    def device(self, wanted: str) -> str:
        """Return this rank's part of the devices that were asked for."""
        return wanted

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Tell the others of an exception that leaves the block; the first rank waits until they have stopped."""
        yield


ALONE = Ranks()
