"""Tables of names: what a trainer calls a tensor, and what the hub calls it. One table serves both directions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ...errors import CheckpointError, nearest

__all__ = ["NameTable", "NamesError", "read_table", "table_of"]

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)(\*?)\}")
_MOST_SHOWN = 5
_MOST_PLACEHOLDERS = 6  # each may try every end of what it stands for
_FORM = "expected the trainer's name: the hub's name, such as layers.{i}.wq.weight: model.layers.{i}.q_proj.weight"


class NamesError(CheckpointError):
    """A table does not fit the names of a checkpoint.

    Attributes:
        fault: the message without the place.
    """

    def __init__(self, message: str, fault: str = ""):  # one argument suffices, as pickle makes it of the message
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True)
class _Side:
    """A name with placeholders: ``{i}`` stands for a part without dots, ``{rest*}`` for any text."""

    text: str
    pattern: re.Pattern[str]
    placeholders: frozenset[str]

    @classmethod
    def of(cls, text: str) -> _Side:
        pattern, at = "", 0
        names: list[str] = []
        for found in _PLACEHOLDER.finditer(text):
            name, dots = found.groups()
            if names and found.start() == at:
                raise ValueError(f"{text!r} has no text between {{{names[-1]}}} and {{{name}}}")
            pattern += re.escape(text[at : found.start()]) + f"(?P<{name}>{'.+' if dots else '[^.]+'})"
            names.append(name)
            at = found.end()
        if len(set(names)) < len(names):
            raise ValueError(f"{text!r} names a placeholder twice")
        if len(names) > _MOST_PLACEHOLDERS:
            raise ValueError(f"{text!r} has more than {_MOST_PLACEHOLDERS} placeholders")
        return cls(text, re.compile(pattern + re.escape(text[at:])), frozenset(names))

    def fill(self, values: Mapping[str, str]) -> str:
        return _PLACEHOLDER.sub(lambda found: values[found[1]], self.text)


@dataclass(frozen=True)
class NameTable:
    """Names in a trainer's checkpoint and their names on the hub; None there leaves a tensor out.

    Names without placeholders come first, then patterns in their order; the first one that fits counts.
    """

    entries: tuple[tuple[_Side, _Side | None], ...]

    @property
    def text(self) -> dict[str, str | None]:
        """The table as it is written in a recipe."""
        return {trainer.text: hub.text if hub else None for trainer, hub in self.entries}

    def to_hub(self, names: Iterable[str], where: str) -> dict[str, str | None]:
        """Return the hub's name for each name of a trainer's checkpoint.

        Raises:
            NamesError: names that no entry fits, or that get one name; all of them are told.
        """
        return _renamed(names, where, self.entries, leaves=True)

    def to_trainer(self, names: Iterable[str], where: str) -> dict[str, str]:
        """Return the trainer's name for each name of the hub. Raises as ``to_hub``."""
        sides = [(hub, trainer) for trainer, hub in self.entries if hub is not None]
        return {name: own for name, own in _renamed(names, where, sides, leaves=False).items() if own is not None}


def table_of(given: Any) -> NameTable:
    """Make a table of a mapping.

    Raises:
        ValueError: it is none, or an entry is wrong; all of them are told.
    """
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"is {given!r:.60}; {_FORM}")
    entries, problems = [], []
    for trainer, hub in given.items():
        try:
            entries.append(_entry(trainer, hub))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    entries.sort(key=lambda entry: bool(entry[0].placeholders))  # the others stay in their order
    return NameTable(tuple(entries))


def read_table(path: str | os.PathLike[str]) -> NameTable:
    """Read a table from a file of YAML or JSON; CheckpointError where it is none."""
    place = os.fspath(path)
    try:
        with open(os.path.expanduser(place), encoding="utf-8") as file:
            return table_of(yaml.safe_load(file))
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be read: {error.strerror} (name a table of names)") from error
    except (ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{place}: {error}") from error


def _entry(trainer: Any, hub: Any) -> tuple[_Side, _Side | None]:
    if not isinstance(trainer, str) or not trainer or not (hub is None or (isinstance(hub, str) and hub)):
        raise ValueError(f"{trainer!r}: {hub!r} is no entry; {_FORM}")
    left = _Side.of(trainer)
    if hub is None:
        return left, None
    right = _Side.of(hub)
    if left.placeholders != right.placeholders:
        odd = ", ".join(f"{{{name}}}" for name in sorted(left.placeholders ^ right.placeholders))
        raise ValueError(f"{trainer}: {hub} has {odd} on one side only")
    return left, right


def _renamed(
    names: Iterable[str], where: str, sides: Sequence[tuple[_Side, _Side | None]], leaves: bool
) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    owners: dict[str, list[str]] = {}
    missed, used = [], set()
    exact = {source.text: i for i, (source, _) in enumerate(sides) if not source.placeholders}
    patterns = [i for i, (source, _) in enumerate(sides) if source.placeholders]
    for name in names:
        fits = [exact[name]] if name in exact else (i for i in patterns if sides[i][0].pattern.fullmatch(name))
        i = next(iter(fits), None)
        if i is None:
            missed.append(name)
            continue
        used.add(i)
        source, target = sides[i]
        match = source.pattern.fullmatch(name)
        assert match is not None
        found[name] = None if target is None else target.fill(match.groupdict())
        if (own := found[name]) is not None:
            owners.setdefault(own, []).append(name)
    twice = {own: several for own, several in owners.items() if len(several) > 1}
    if missed or twice:
        idle = [source.text for i, (source, _) in enumerate(sides) if i not in used]
        fault = "; ".join(_faults(missed, twice, idle, leaves))
        raise NamesError(f"{where}: names: {fault}", fault)
    return found


def _faults(missed: list[str], twice: Mapping[str, list[str]], idle: list[str], leaves: bool) -> Iterator[str]:
    if missed:
        shown = ", ".join(_with_guess(name, idle) for name in missed[:_MOST_SHOWN])
        more = f" and {len(missed) - _MOST_SHOWN} more" if len(missed) > _MOST_SHOWN else ""
        out = ", null leaves one out" if leaves else ""
        yield f'no entry fits {shown}{more} (add entries; "{{name*}}": "{{name*}}" keeps all other names{out})'
    for own, several in list(twice.items())[:_MOST_SHOWN]:
        yield f"{' and '.join(several[:_MOST_SHOWN])} both become {own} (give each a name of its own)"


def _with_guess(name: str, idle: list[str]) -> str:
    """Return a name, with the entry that was probably meant for it where one fits nothing."""
    guess = nearest(name, idle)
    return f"{name} (the entry {guess} fits nothing)" if guess else name
