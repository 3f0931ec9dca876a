"""The journal of an analysis: what is known of each tensor so far, so that a stopped one goes on.

``.<name>.analysis`` beside the report. Line 0 names what was asked and the state of every input file; each further
line is one tensor. The file goes when the report appears.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from .. import __version__
from ..engine.leftovers import ANALYSIS
from ..engine.publish import hold
from ..errors import FastmergeError, InputChanged, InvalidInput, Refused, explained
from .family import Family
from .matrices import Ranks
from .measures import Measure

__all__ = ["Journal", "Known", "journal_of"]

_TABLES = {"gram": torch.float64, "changed": torch.int64, "opposed": torch.int64, "weights": torch.float64}


@dataclass(frozen=True)
class Known:
    """Of one tensor; ``ranks`` of an attention or MLP matrix alone."""

    measure: Measure
    ranks: Ranks | None


class Journal:
    """``known`` holds what a former run found; ``add`` may be called from any thread."""

    def __init__(self, path: Path, family: Family, exact: bool):
        self.path = path
        first = {**ANALYSIS, "version": __version__, "exact": exact, "base": family.base, "models": family.models}
        first["training"] = family.training
        first["inputs"] = [[file.path, file.nbytes, file.mtime_ns, file.header_digest] for file in family.files]
        first = json.loads(json.dumps(first))
        lines = _read(path)
        self.known = {line["tensor"]: _known(line) for line in lines[1:]} if lines[:1] == [first] else {}
        self._lock = Lock()
        draft = path.with_name(f"{path.name}.new")
        with explained(str(path), "starting the journal"):
            draft.write_text("".join(json.dumps(line) + "\n" for line in (first, *(lines[1:] if self.known else ()))))
            os.replace(draft, path)
            self._file = path.open("a", encoding="utf-8")

    def add(self, name: str, known: Known) -> None:
        measure = {**vars(known.measure), **{key: getattr(known.measure, key).tolist() for key in _TABLES}}
        line = {"tensor": name, "measure": measure, "ranks": known.ranks and asdict(known.ranks)}
        with self._lock, explained(str(self.path), "writing the journal"):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def journal_of(target: Path, family: Family, exact: bool) -> Iterator[Journal]:
    """Hold ``target`` and yield its journal; it stays when the block fails and the same command may go on.

    Raises:
        OutputError: another fastmerge works on ``target``.
    """
    path = target.with_name(f".{target.name}.analysis")
    with hold(target):
        journal = Journal(path, family, exact)
        try:
            yield journal
        except (Refused, InvalidInput, InputChanged):  # the same command would fail again, or begin anew
            path.unlink(missing_ok=True)
            raise
        except (FastmergeError, KeyboardInterrupt) as error:
            left = (
                f"what is known so far is kept in {path}; the same command goes on, fastmerge clean {target} removes it"
            )
            error.args = ("; ".join(filter(None, (str(error), left))),)
            raise
        else:
            path.unlink(missing_ok=True)
        finally:
            journal.close()


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the lines but a torn last one; none where there is no such file, or it is not as it was written."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    except (OSError, ValueError):
        return []


def _known(line: dict[str, Any]) -> Known:
    measure = line["measure"]
    tables = {key: torch.tensor(measure[key], dtype=dtype) for key, dtype in _TABLES.items()}
    return Known(Measure(**{**measure, **tables}), line["ranks"] and Ranks(**line["ranks"]))
