"""The journal: which output tensors are finished and on the disk, so that a killed run can go on.

Line 0 names the plan and the state of every input file; each further line is one finished tensor, or part of one
(``parts``), and its checksum. A tensor's line is written only after its bytes were flushed, many tensors per flush.

Of a run of several ranks the first one writes ``journal.jsonl``, and each other one ``journal-<rank>.jsonl`` beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import threading
import time
from collections.abc import Iterable
from typing import Any

from ..errors import OutputError, explained
from ..plan.types import OutputTensor, Plan
from .checksums import Sums
from .files import OutputFiles, pwrite

FLUSH_SECONDS = 2.0
FLUSH_BYTES = 4 << 30


def identity(plan: Plan) -> dict[str, Any]:
    """Return line 0: all that must be equal for a run to go on with another one's files."""
    files = [[file.path, file.nbytes, file.mtime_ns, file.header_digest] for m in plan.models for file in m.files]
    return {"journal": 1, "plan": plan.digest, "recipe": plan.recipe, "inputs": files}


def journals_beside(path: str) -> list[str]:
    """Return the journals that other ranks wrote beside that of the first one, ``path``, in the order of the ranks."""
    folder, stem = os.path.dirname(path), os.path.basename(path).removesuffix(".jsonl")
    ranks = [int(match[1]) for name in os.listdir(folder) if (match := re.fullmatch(rf"{stem}-(\d+)\.jsonl", name))]
    return [journal_of(path, rank) for rank in sorted(ranks)]


def journal_of(path: str, rank: int) -> str:
    """Return where a rank writes, when the first one writes ``path``."""
    return f"{path.removesuffix('.jsonl')}-{rank}.jsonl" if rank else path


def read_journals(path: str, plan: Plan) -> dict[str, Sums]:
    """Return what ``read_journal`` does, of the journals of all ranks together.

    Raises:
        OutputError: a rank of an earlier run works still.
    """
    if not os.path.isdir(os.path.dirname(path)):
        return {}
    found: dict[str, Sums] = {}
    for one in (path, *journals_beside(path)):
        if is_written(one):
            raise OutputError(f"{one}: a process of an earlier run still writes; wait until it has ended, or end it")
        found |= read_journal(one, plan)
    return found


def is_written(path: str) -> bool:
    """True where another process writes a journal."""
    try:
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none, or the file system has no locks
        return False
    return False


def read_journal(path: str, plan: Plan) -> dict[str, Sums]:
    """Return the checksums of the finished tensors by name; empty when the journal is missing or of another state.

    A last line that was cut off by a crash is ignored.
    """
    if not os.path.exists(path):
        return {}
    try:
        with explained(path, "reading the journal"), open(path, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file.read().split("\n")[:-1]]
        if lines[:1] == [identity(plan)]:
            return {line["name"]: Sums(line["checksum"], tuple(line["inputs"])) for line in lines[1:]}
    except (ValueError, TypeError, KeyError):  # not as it was written
        pass
    return {}


def _line(name: str, sums: Sums) -> dict[str, Any]:
    return {"name": name, "checksum": sums.output, "inputs": sums.inputs}


class Journal:
    """Appends to the journal. ``finished`` may be called from any thread, the rest from one."""

    def __init__(self, path: str, plan: Plan, outputs: OutputFiles, finished: dict[str, Sums]):
        """Start the journal anew with what is known to be ``finished``."""
        self._path, self._outputs = path, outputs
        self._lock = threading.Lock()
        self._pending: list[tuple[OutputTensor, Sums]] = []
        self._pending_bytes = 0
        self._flushed = time.monotonic()
        self.checksums = dict(finished)
        self._failed = False
        draft = path + ".new"
        with explained(path, "starting the journal"):
            self._file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            self._end = 0
            self._append([identity(plan), *(_line(name, sums) for name, sums in finished.items())])
            os.fsync(self._file)
            with contextlib.suppress(OSError):  # some file systems have no locks
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.replace(draft, path)

    def finished(self, output: OutputTensor, sums: Sums) -> None:
        """Note a tensor whose bytes were handed to the operating system."""
        with self._lock:
            self._pending.append((output, sums))
            self._pending_bytes += output.nbytes

    def tick(self) -> None:
        """Flush when it is time: every two seconds, or 4 GiB."""
        if time.monotonic() - self._flushed > FLUSH_SECONDS or self._pending_bytes > FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Bring the noted tensors to the disk, and then their lines.

        Nothing more is noted after a failure: what a later flush of the disk says of lost bytes is not to be trusted.
        """
        with self._lock:
            batch, self._pending, self._pending_bytes = self._pending, [], 0
        if batch and not self._failed:
            self._failed = True
            self._outputs.sync({output.shard for output, _ in batch})
            with explained(self._path, "writing the journal"):
                self._append([_line(output.name, sums) for output, sums in batch])
            self.checksums.update((output.name, sums) for output, sums in batch)
            self._failed = False
        self._flushed = time.monotonic()

    def _append(self, lines: Iterable[dict[str, Any]]) -> None:
        data = memoryview("".join(json.dumps(line) + "\n" for line in lines).encode())
        pwrite(self._file, data, self._end)
        self._end += len(data)

    def close(self) -> None:
        os.close(self._file)
