"""Progress of commands, on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import click

from ..progress import lines, terminal_bar
from . import _garbage


def phase(name: str, quiet: bool) -> None:
    """Say what begins, on a terminal."""
    if not quiet and sys.stderr.isatty():
        click.echo(f"{name} ...", err=True)


@contextlib.contextmanager
def progress(title: str, quiet: bool, last: str = "") -> Iterator[Callable[[int, int], None] | None]:
    """Yield a function of the bytes done and of all bytes, or None when ``quiet``. Everything goes to stderr.

    ``last`` is the title of a bar that is full: of what is done then.

    What takes a progress takes long, so garbage is collected from here on.
    """
    _garbage.collect_from_here()
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with terminal_bar(title, last or title) as update:
            yield update
    else:
        yield lines(title)
