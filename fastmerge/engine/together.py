"""What ranks do together: compare their plans, open the output, and put what each one has into one."""

from __future__ import annotations

import json
import pickle
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import FastmergeError, OutputError
from ..plan.types import Plan
from ..steps.census import Round
from .checksums import Sums
from .files import OutputFiles
from .journal import identity
from .manifest import FILENAME
from .publish import RANKS, StagingFolder
from .ranks import Ranks
from .report import Meter

SEEN_LATE = 30.0
"""Seconds after which a machine sees new files of another one: NFS may remember for so long that there are none."""


def agree_on_plan(ranks: Ranks, plan: Plan, target: Path, allow_nonfinite: bool) -> None:
    """Raise FastmergeError, on every rank, unless all have planned the same merge of the same files."""
    if ranks.count == 1:
        return
    mine = {
        "version": __version__,
        "output": str(target),
        "plan": plan.digest,
        "state of the inputs": identity(plan)["inputs"],
        "--allow-nonfinite": allow_nonfinite,
    }

    def compare(values: list[bytes]) -> bytes:
        for number, value in enumerate(values):
            for what, wanted in mine.items():
                found = json.loads(value)[what]
                if found != wanted:
                    raise FastmergeError(
                        f"rank {number} of {ranks.count} has planned another merge than rank 0:"
                        f" {_difference(what, found, wanted)};"
                        " all ranks need the same command, the same version, and the same files"
                    )
        return b""

    ranks.agree(json.dumps(mine).encode(), compare)


def _difference(what: str, found: Any, wanted: Any) -> str:
    if not isinstance(found, list):
        return f"its {what} is {found}, not {wanted}"
    other = next((f for f in found if f not in wanted), None) or next(f for f in wanted if f not in found)
    return f"the {what} differs, such as that of {other[0]} ({other[1]} bytes, written at {other[2]} ns)"


def open_together(ranks: Ranks, staging: StagingFolder, outputs: OutputFiles) -> None:
    """Let the first rank make the output files, and the others open them.

    OutputError on a rank that does not see what the first one made.
    """
    path = staging.folder / RANKS
    if ranks.first:
        outputs.open()
        token = uuid.uuid4().hex.encode()
        if ranks.count > 1:
            outputs.sync_all()
            path.write_bytes(token)
        ranks.hear(token)
        return
    token = ranks.hear(b"")
    _wait_to_see(ranks, staging.folder, lambda: _sees(path, token))
    outputs.open(made=True)


def appear_to(ranks: Ranks, folder: Path) -> None:
    """Wait, on other ranks than the first, until the finished checkpoint that it made is to be seen.

    OutputError where that does not come.
    """
    if not ranks.first:
        _wait_to_see(ranks, folder, lambda: (folder / FILENAME).is_file())


def _wait_to_see(ranks: Ranks, folder: Path, seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + min(ranks.timeout, SEEN_LATE)
    while not seen():
        ranks.tick(0)
        if time.monotonic() > deadline:
            raise OutputError(f"{folder}: is not what rank 0 made there; all ranks need a file system in common")
        time.sleep(0.05)


def _sees(path: Path, token: bytes) -> bool:
    return path.is_file() and path.read_bytes() == token


def combined_sums(ranks: Ranks, sums: Mapping[str, Sums]) -> dict[str, Sums]:
    """Return the checksums of all ranks on the first one; nothing on the others."""
    if ranks.count == 1:
        return dict(sums)
    values = ranks.collect(_packed(sums))
    return {name: one for value in values for name, one in _unpacked(value).items()} if ranks.first else {}


def combine_meters(ranks: Ranks, meter: Meter) -> None:
    """Add, on the first rank, the bytes and remarks of the others."""
    values = ranks.collect(json.dumps([meter.bytes_read, meter.bytes_written, dict(meter.remarks)]).encode())
    for read, written, remarks in map(json.loads, values[1:]):
        meter.add(read, written)
        for text, names in remarks.items():
            for name in names:
                meter.remark(name, [text])


def promised_to(ranks: Ranks, read: Callable[[], dict[str, Sums]]) -> dict[str, Sums]:
    """Return what the first rank reads in the journals."""
    if ranks.count == 1:
        return read()
    return _unpacked(ranks.hear(_packed(read()) if ranks.first else b""))


def united(ranks: Ranks, found: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of all ranks, on every one."""
    if ranks.count == 1:
        return dict(found)

    def unite(values: list[bytes]) -> bytes:
        return json.dumps({name: text for value in values for name, text in json.loads(value).items()}).encode()

    return json.loads(ranks.agree(json.dumps(dict(found)).encode(), unite))


def combined_round(ranks: Ranks, taken: Round) -> Round:
    """Return a round of censuses over all ranks, each of which has taken it over its own tensors."""
    if ranks.count == 1:
        return taken

    def combine(values: list[bytes]) -> bytes:
        total = Round()
        for value in values:
            total.add(pickle.loads(value))
        return pickle.dumps(total.parts)

    total = Round()
    total.add(pickle.loads(ranks.agree(pickle.dumps(taken.parts), combine)))
    return total


def _packed(sums: Mapping[str, Sums]) -> bytes:
    return json.dumps({name: [one.output, one.inputs] for name, one in sums.items()}).encode()


def _unpacked(data: bytes) -> dict[str, Sums]:
    return {name: Sums(output, tuple(inputs)) for name, (output, inputs) in json.loads(data).items()}
