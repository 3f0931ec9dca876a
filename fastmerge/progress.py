"""Progress by bytes: a bar on a terminal, a bar in a notebook, plain lines in a pipe."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from .errors import InvalidInput, Problem
from .sizes import show_size

__all__ = ["Progress", "ProgressLike", "lines", "notebook_bar", "of_bytes", "shown", "terminal_bar"]

Progress = Callable[[int, int], None]
"""Called with what is done, and with all of it."""

ProgressLike = Progress | bool | None
"""Of a function's ``progress``: None draws a bar in notebooks, True everywhere, False none; or what is called."""

SECONDS_BETWEEN_LINES = 5.0
# As often as a notebook draws its bar.
SECONDS_BETWEEN_DRAWINGS = 0.2


@contextlib.contextmanager
def shown(wanted: ProgressLike, title: str) -> Iterator[Progress | None]:
    """Yield what to call with the progress of a function; None where nothing is to be shown."""
    if callable(wanted):
        yield wanted
    elif wanted not in (None, True, False):
        raise InvalidInput([Problem("progress", f"is {wanted!r}, expected None, True, False or a function")])
    elif wanted is False or (wanted is None and not _in_notebook()):
        yield None
    elif _in_notebook():
        with notebook_bar(title) as update:
            yield update
    elif sys.stderr.isatty():
        with terminal_bar(title, title) as update:
            yield update
    else:
        yield lines(title)


def of_bytes(progress: Progress | None, total: int) -> Callable[[int], None] | None:
    """Return what is called with the bytes that are done, of ``total`` at most."""
    return None if progress is None else lambda done: progress(min(done, total), total)


def _in_notebook() -> bool:
    """True where a kernel of IPython runs this: of Jupyter, Colab, VS Code."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


@contextlib.contextmanager
def notebook_bar(title: str) -> Iterator[Progress]:
    """Yield a function that draws a bar below the cell. It needs no widgets, and stays in the saved notebook."""
    from IPython.display import HTML, display

    handle = display(HTML(_drawn(title, 0, 0, 0.0)), display_id=True)
    started = last = time.monotonic()
    done = total = 0

    def update(now_done: int, all_of_it: int) -> None:
        nonlocal done, total, last
        done, total = now_done, all_of_it
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_DRAWINGS:
            last = now
            handle.update(HTML(_drawn(title, done, total, now - started)))

    try:
        yield update
    finally:
        handle.update(HTML(_drawn(title, done, total, time.monotonic() - started)))


def _drawn(title: str, done: int, total: int, seconds: float) -> str:
    """Return a bar as HTML, with the rate and the time that is left."""
    from html import escape  # slow, and of no use outside of notebooks

    said = f"{show_size(done)} of {show_size(total)}" if total else ""
    if done and seconds:
        rate = done / seconds
        left = f", {(total - done) / rate:.0f} s left" if done < total else f" in {seconds:.1f} s"
        said += f", {show_size(rate)}/s{left}"
    return f'<div>{escape(title)} <progress value="{done}" max="{max(total, 1)}"></progress> {escape(said)}</div>'


@contextlib.contextmanager
def terminal_bar(title: str, last: str) -> Iterator[Progress]:
    """Yield a function that draws a bar on stderr; ``last`` is the title of one that is full: of what is done then."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=None)

        def update(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total, description=last if done >= total else title)

        yield update


def lines(title: str) -> Progress:
    """Return a function that writes a line to stderr every few seconds."""
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
        print(f"{title}: {share}, {show_size(rate)}/s, {left:.0f} s left", file=sys.stderr)

    return update
