"""Progress by bytes: a bar with rate and remaining time on a terminal, plain lines in a pipe."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import click

from ..sizes import show_size
from . import _garbage

SECONDS_BETWEEN_LINES = 5.0


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
        with _bar(title, last or title) as update:
            yield update
    else:
        yield _lines(title)


@contextlib.contextmanager
def _bar(title: str, last: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description=last if done >= total else title)

        yield update


def _lines(title: str) -> Callable[[int, int], None]:
    started = time.monotonic()
    last = started

    def update(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES or not done:
            return
        last = now
        rate = done / (now - started)
        left = (total - done) / rate
        share = f"{show_size(done)} of {show_size(total)} ({100 * done / total:.0f} %)"
        click.echo(f"{title}: {share}, {show_size(rate)}/s, {left:.0f} s left", err=True)

    return update
