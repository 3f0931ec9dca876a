"""How errors reach the user: one clear message, a status, no traceback."""

from __future__ import annotations

import contextlib
import errno
import json
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import click

from ..errors import FastmergeError, OutputError
from . import _garbage
from ._help import GroupedCommand, SectionedGroup
from ._output import note

FAILED = 2


class Failure(click.ClickException):
    """An error that the user can act on; exits with status 2."""

    exit_code = FAILED

    def __init__(self, error: Exception, as_json: bool):
        super().__init__(error.format_message() if isinstance(error, click.ClickException) else str(error))
        self._problems = tuple(dict.fromkeys(getattr(error, "problems", ())))
        self._notes = getattr(error, "notes", ())
        self._as_json = as_json

    def show(self, file: Any = None) -> None:
        if self._as_json:
            problems = [{"where": p.where, "what": p.what, "remedy": p.remedy} for p in self._problems]
            values = {"error": self.message, "problems": problems, "notes": list(self._notes)}
            click.echo(json.dumps(values, indent=2))
        elif self._problems:
            count = len(self._problems)
            click.echo(f"error: {count} problem{'s' if count > 1 else ''}", err=True)
            for problem in self._problems:
                click.echo(f"  - {problem}", err=True)
            for text in self._notes:
                note(text)
        else:
            click.echo(f"error: {self.message}", err=True)


class Command(GroupedCommand):
    """A command whose errors become one message: as text, or as an object when it was called with ``--json``.

    Plugins (``_options.PLUGIN``) are loaded before it starts.
    """

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        as_json = "--json" in args
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            if not as_json:
                raise
            raise Failure(error, as_json) from error

    def invoke(self, context: click.Context) -> Any:
        as_json = context.params.get("as_json", False)
        try:
            with _ending_in_order():
                _load_plugins(context.params.pop("plugins", ()))
                return super().invoke(context)
        except FastmergeError as error:
            raise Failure(error, as_json) from error
        except click.UsageError as error:
            if not as_json:
                raise
            raise Failure(error, as_json) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # nobody reads on: click ends without a word
                raise
            raise Failure(OutputError(_of_the_machine(error)), as_json) from error
        except RuntimeError as error:
            # The kernels do not know fastmerge.errors, so a backend that cannot run is a class of its own.
            if type(error).__name__ != "BackendError":
                raise
            raise Failure(error, as_json) from error
        except KeyboardInterrupt as interrupt:
            click.echo(f"\ninterrupted: {interrupt}" if str(interrupt) else "\ninterrupted", err=True)
            context.exit(128 + getattr(interrupt, "signal", signal.SIGINT))


def _of_the_machine(error: OSError) -> str:
    """Return what the system said, and of which file; what is printed has no name."""
    what = error.strerror or str(error)
    return f"{error.filename}: {what}" if error.filename is not None else f"what is printed cannot be written: {what}"


class Signalled(KeyboardInterrupt):
    """A signal asked the process to end."""

    def __init__(self, number: int):
        super().__init__(*(() if number == signal.SIGINT else (signal.Signals(number).name,)))
        self.signal = number


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does, with a word about what is left. More signals change nothing.

    A command that is ending has files open and threads at work, which a second interruption would leave as they are.
    """
    came: list[int] = []

    def end(number: int, frame: object) -> None:
        came.append(number)
        if len(came) == 1:
            raise Signalled(number)

    # Where a signal is ignored, as under nohup, it stays so; and only the main thread may have handlers.
    usual: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    usual[signal.SIGINT] = signal.default_int_handler
    main = threading.current_thread() is threading.main_thread()
    handled = [number for number, handler in usual.items() if main and signal.getsignal(number) is handler]
    for number in handled:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, usual[number])


def _load_plugins(paths: Sequence[str]) -> None:
    if not paths:
        return
    from ..methods import load_plugin

    for path in paths:
        load_plugin(path)


class Commands(SectionedGroup):
    """The group of all commands."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **settings: Any) -> Any:
        # Without arguments of its own it has those of the process, which then is this command.
        with _garbage.uncollected() if args is None else contextlib.nullcontext():
            return super().main(args, *more, **settings)
