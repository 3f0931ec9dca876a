"""Ranks that torchrun, or another launcher, started: they meet at the store of torch.distributed.

Nothing but the store is needed: no connections between the ranks, no process group. One thread of each rank does all
the talking, so that nothing that the network does holds up the rank itself: what another one said, that one died, or
that the store is silent, is seen by ``tick`` and by everything that waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BudgetError, CheckpointError, FastmergeError, InputChanged, OutputError, Refused
from .launched import Place, connected, own_devices, put, take
from .ranks import Ranks
from .targets import choose

# Seconds between two looks at the store: while a value is awaited, and otherwise.
_SOON, _LATER = 0.02, 0.5
# What the first rank waits for the others to stop, after an error: all of them, and one that gives no sign of life.
_STOPPING, _LIFELESS = 20.0, 5.0

_KINDS = {kind.__name__: kind for kind in (BudgetError, CheckpointError, InputChanged, OutputError, Refused)}


@dataclass
class _Awaited:
    """Keys of the store, how many ranks read them, and their values once they are there."""

    keys: list[str]
    readers: int
    values: list[bytes] | None = None


class LaunchedRanks(Ranks):
    """One of several ranks, from ``with`` on. Methods are called by one thread, but for ``agree_among``.

    Raises:
        FastmergeError: the store, or a rank, does not answer for ``timeout`` seconds, or another rank failed. The error
            of that one is told, as one of its kind.
    """

    def __init__(self, place: Place, timeout: float):
        self.number, self.count, self.timeout, self._place = place.rank, place.count, timeout, place
        self._changed = threading.Condition()
        self._wake = threading.Event()
        self._turn = 0
        # Shared with the thread, under the lock of ``_changed``.
        self._outbox: list[tuple[str, bytes]] = []
        self._awaited: list[_Awaited] = []
        self._written = [0] * place.count
        self._left: set[int] = set()
        self._failure: FastmergeError | None = None
        self._heard = time.monotonic()
        self._ending = False
        self._parting = False
        self._patience: float | None = None  # until when the first rank waits for the others to stop
        # Of the thread alone.
        self._beats: dict[int, tuple[bytes, float]] = {}

    def __enter__(self) -> LaunchedRanks:
        self._store = connected(self._place, self.timeout)
        now = time.monotonic()
        self._heard = now
        self._beats = {number: (b"", now) for number in range(self.count) if number != self.number}
        self._thread = threading.Thread(target=self._talk, name="fastmerge-ranks", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self._tell(error)
        if not self.first:
            self._post(f"left/{self.number}", b"1")
        elif error is None:  # its store may end with it
            self._wait_until(self._alone, self.timeout)
        else:
            self._wait_for_others()
        self._ending = True
        self._wake.set()
        self._thread.join(min(self.timeout, _STOPPING))

    def collect(self, value: bytes) -> list[bytes]:
        self._turn += 1
        self._post(f"{self._turn}/{self.number}", value)
        return self._await([f"{self._turn}/{number}" for number in range(self.count)], 1) if self.first else []

    def hear(self, value: bytes) -> bytes:
        self._turn += 1
        if self.first:
            self._post(f"{self._turn}/said", value)
            return value
        return self._await([f"{self._turn}/said"], self.count - 1)[0]

    def agree_among(
        self,
        some: Sequence[int],
        key: str,
        value: bytes,
        combine: Callable[[list[bytes]], bytes],
        stopped: Callable[[], bool],
    ) -> bytes:
        key = f"{self._turn}/{key}"  # which no rank changes while others merge
        if self.number != some[0]:
            self._post(f"{key}/{self.number}", value)
            return self._await([f"{key}/all"], len(some) - 1, stopped)[0]
        total = combine([value, *self._await([f"{key}/{number}" for number in some[1:]], 1, stopped)])
        self._post(f"{key}/all", total)
        return total

    def tick(self, written: int) -> int:
        with self._changed:
            self._written[self.number] = written
            self._check()
            return sum(self._written)

    def default_threads(self) -> int:
        return max(1, len(os.sched_getaffinity(0)) // self._place.local_count) + 2

    def device(self, wanted: str) -> str:
        if wanted not in ("cuda", "auto"):
            return wanted
        found = choose(wanted, None).names
        return wanted if found == ("cpu",) else own_devices(len(found), self._place.local_rank, self._place.local_count)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._tell(error)
            if self.first:
                self._wait_for_others()
            raise

    def _check(self) -> None:
        """Raise what ended another rank; called with the lock."""
        if self._failure is not None:
            raise self._failure
        if time.monotonic() - self._heard > self.timeout:
            self._failure = self._silent(f"has not answered for {self.timeout:g} s")
            raise self._failure

    def _silent(self, what: str) -> FastmergeError:
        return FastmergeError(
            f"{self.name}: the store of the ranks at {self._place.address}:{self._place.port} {what};"
            " rank 0 or its launcher ended, or the network did"
        )

    def _post(self, key: str, value: bytes) -> None:
        with self._changed:
            self._outbox.append((key, value))
        self._wake.set()

    def _await(self, keys: list[str], readers: int, stopped: Callable[[], bool] = lambda: False) -> list[bytes]:
        """Wait until all keys have values, and return these. When all ``readers`` have them, they are forgotten."""
        awaited = _Awaited(keys, readers)
        with self._changed:
            self._awaited.append(awaited)
            self._wake.set()
            while awaited.values is None:
                self._check()
                if stopped():
                    raise FastmergeError(f"{self.name} stopped")
                self._changed.wait(_LATER)
            return awaited.values

    def _tell(self, error: BaseException) -> None:
        """Tell the others of an error, unless one of them told it."""
        with self._changed:
            if self._failure is not None:
                return
            text = str(error) or type(error).__name__
            self._failure = FastmergeError(text)
        value = {"kind": type(error).__name__, "text": f"{self.name} on {socket.gethostname()} stopped: {text}"}
        self._post("failed", json.dumps(value).encode())
        self._wait_until(lambda: not self._outbox, min(self.timeout, _STOPPING))

    def _alone(self) -> bool:
        return len(self._left) == self.count - 1

    def _wait_for_others(self) -> None:
        """Wait, after an error, until the others have left or are dead; not for long."""
        if self._patience is None:
            self._patience = time.monotonic() + _STOPPING
        self._wait_until(self._abandoned, self._patience - time.monotonic())

    def _abandoned(self) -> bool:
        """True when no other one is known to be at work."""
        now = time.monotonic()
        return all(n in self._left or now - since > _LIFELESS for n, (_, since) in list(self._beats.items()))

    def _wait_until(self, holds: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self._parting = True
        with self._changed:
            while not holds() and self._thread.is_alive() and time.monotonic() < deadline:
                self._wake.set()
                self._changed.wait(_SOON)

    def _talk(self) -> None:
        last = 0.0
        while True:
            ending = self._ending
            try:
                self._exchange()
                if time.monotonic() - last > (_SOON if self._parting else _LATER) or ending:
                    last = time.monotonic()
                    self._listen()
                with self._changed:
                    self._heard = time.monotonic()
                    self._changed.notify_all()
            except RuntimeError as error:  # of torch.distributed: the connection is lost, or timed out
                with self._changed:
                    self._failure = self._failure or self._silent(f"is gone: {error}")
                    self._changed.notify_all()
                return
            if ending:
                return
            self._wake.wait(_SOON if self._awaited or self._parting else _LATER)
            self._wake.clear()

    def _exchange(self) -> None:
        """Send what is to be sent, and fetch what is awaited, if it is there."""
        while self._outbox:
            key, value = self._outbox[0]
            if key == "failed":  # the first one counts
                self._store.compare_set(key, "", value.decode())
            else:
                put(self._store, key, value)
            with self._changed:
                self._outbox.pop(0)
        for awaited in list(self._awaited):
            if self._store.check(awaited.keys):
                values = [take(self._store, key, awaited.readers) for key in awaited.keys]
                with self._changed:
                    awaited.values = values
                    self._awaited.remove(awaited)

    def _listen(self) -> None:
        """Give a sign of life, and look for those of the others."""
        now = time.monotonic()
        self._store.set(f"alive/{self.number}", f"{now} {self._written[self.number]}")
        if self._store.check(["failed"]):
            told = json.loads(self._store.get("failed"))
            kind: type[FastmergeError] = _KINDS.get(told["kind"], FastmergeError)
            with self._changed:
                self._failure = self._failure or kind(told["text"])
        for number, (before, since) in list(self._beats.items()):
            if number and not self.first:
                continue  # the first one looks after the others, these look after it
            if self._store.check([f"left/{number}"]):
                del self._beats[number]
                with self._changed:
                    self._left.add(number)
            elif self._store.check([key := f"alive/{number}"]) and (beat := bytes(self._store.get(key))) != before:
                self._beats[number] = beat, now
                self._written[number] = int(beat.split()[1])
            elif now - since > self.timeout:
                self._lose(number)

    def _lose(self, number: int) -> None:
        """Declare a rank dead."""
        del self._beats[number]
        text = (
            f"rank {number} of {self.count} has not been heard of for {self.timeout:g} s: it was killed,"
            " or its machine is gone"
        )
        with self._changed:
            self._left.add(number)
            told = self._failure is not None
            self._failure = self._failure or FastmergeError(text)
        if not told:
            self._store.compare_set("failed", "", json.dumps({"kind": "FastmergeError", "text": text}))
