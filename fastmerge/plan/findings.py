"""What planning finds: problems that stop the merge, and notes that its author should read."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import InvalidInput, Problem


@dataclass
class Findings:
    """What has been found so far; nothing stops before everything has been looked at."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, where: str, what: str, remedy: str = "") -> None:
        self.problems.append(Problem(where, what, remedy))

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def forbid_notes(self) -> None:
        """Make every note a problem."""
        for note in self.notes:
            # A note begins with its place, if it has one.
            where, colon, what = note.partition(": ")
            self.problem(where if colon else "note", what if colon else note)
        self.notes.clear()

    def stop(self) -> None:
        """Raise InvalidInput with everything that was found, if there are problems."""
        if self.problems:
            raise InvalidInput(self.problems, self.notes)


def listed(names: list[str], most: int = 5) -> str:
    """Return the first names of a list, as text."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
