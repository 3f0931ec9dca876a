"""Errors that a user can act on. Each says what is wrong, where, and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

# Of shorter words most are one slip from each other.
_LEAST_LETTERS = 3
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class FastmergeError(Exception):
    """Base class. The command line prints its message without a traceback and exits with status 2.

    Some are a built-in error as well, which callers may expect: ValueError, OSError, MemoryError.
    """


@dataclass(frozen=True)
class Problem:
    """One finding of a validation.

    Attributes:
        where:  file and key or tensor, e.g. ``recipe.yml: models[1].parameters.densty``.
        what:   what is wrong, with the value and what was expected.
        remedy: what to do.
    """

    where: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.remedy})" if self.remedy else "")


class InvalidInput(FastmergeError, ValueError):
    """A recipe or its models cannot be merged.

    Attributes:
        problems: everything that was found, not only the first.
        notes:    what its author should know besides, one sentence each.
    """

    def __init__(self, problems: Sequence[Problem], notes: Sequence[str] = ()):
        self.problems = tuple(problems)
        self.notes = tuple(notes)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class CheckpointError(FastmergeError, OSError):
    """A checkpoint file is corrupt, truncated or of an unsupported kind."""


class InputChanged(CheckpointError):
    """An input is no longer what the plan saw, so that nothing made of it is of use."""


class Refused(FastmergeError):
    """What the inputs hold, or what came out, forbids this merge: the same command would be refused again."""


class OutputError(FastmergeError, OSError):
    """The output cannot be written: it exists, the disk is full, or it belongs to another merge."""


class BudgetError(FastmergeError, MemoryError):
    """A tensor cannot be processed within the memory budget; the message says how much is needed."""


class ShardError(FastmergeError, RuntimeError):
    """Ranks that merge shards together cannot go on: one of them failed or does not answer. Raised on all others."""


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice that ``name`` was probably meant to be, or None: what "did you mean" asks.

    One slip of the keyboard counts for more than what the words have in common otherwise.
    """
    import difflib  # slow, and of no use where nothing is wrong

    given, known = name.replace("-", "_").lower(), list(choices)
    slips = [choice for choice in known if min(len(choice), len(given)) >= _LEAST_LETTERS and _one_slip(given, choice)]
    close = difflib.get_close_matches(given, slips or known, n=1, cutoff=0.0 if slips else 0.75)
    return close[0] if close else None


def _one_slip(a: str, b: str) -> bool:
    """True where one letter is another one, too much or missing, or two neighbours have changed places."""
    i = next((i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))
    swapped = a[i : i + 2] == b[i : i + 2][::-1] and a[i + 2 :] == b[i + 2 :]
    return swapped or a[i + 1 :] in (b[i + 1 :], b[i:]) or a[i:] == b[i + 1 :]


@contextlib.contextmanager
def explained(path: str, doing: str, keeps: bool = True) -> Iterator[None]:
    """Raise OutputError in place of OSError, with the path, what was done, and what to do where the disk is full.

    ``keeps``: what is finished is taken over when the command is run again.
    """
    try:
        yield
    except FastmergeError:
        raise
    except OSError as error:
        if error.errno in _NO_SPACE:
            disk = os.statvfs(os.path.dirname(path) or ".")
            free = disk.f_bavail * disk.f_frsize
            raise OutputError(
                f"{path}: no space left on the disk ({doing}, {free} bytes are free); "
                f"free some and run the same command again{': finished tensors are kept' if keeps else ''}"
            ) from error
        named = f": {error.filename}" if error.filename not in (None, path) else ""
        raise OutputError(f"{path}: {doing}: {error.strerror or error}{named}") from error
