"""Errors that a user can act on. Each says what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class FastmergeError(Exception):
    """Base class. The command line prints its message without a traceback and exits with status 2."""


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


class InvalidInput(FastmergeError):
    """A recipe or its models cannot be merged.

    Attributes:
        problems: everything that was found, not only the first.
        notes:    what its author should know besides, one sentence each.
    """

    def __init__(self, problems: Sequence[Problem], notes: Sequence[str] = ()):
        self.problems = tuple(problems)
        self.notes = tuple(notes)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class CheckpointError(FastmergeError):
    """A checkpoint file is corrupt, truncated or of an unsupported kind."""


class InputChanged(CheckpointError):
    """An input is no longer what the plan saw, so that nothing made of it is of use."""


class Refused(FastmergeError):
    """What the inputs hold, or what came out, forbids this merge: the same command would be refused again."""


class OutputError(FastmergeError):
    """The output cannot be written: it exists, the disk is full, or it belongs to another merge."""


class BudgetError(FastmergeError):
    """A tensor cannot be processed within the memory budget; the message says how much is needed."""
