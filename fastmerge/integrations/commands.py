"""Running a console script of another package in this process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata

import click


def run_command(distribution: str, command: str, arguments: Sequence[str]) -> None:
    """Run what a distribution installs as ``command``; a usage error lists its commands where it has no such one."""
    entries = metadata.distribution(distribution).entry_points
    commands = {entry.name: entry for entry in entries if entry.group == "console_scripts"}
    if command not in commands:
        raise click.UsageError(f"{distribution} has no command {command!r}; it has {', '.join(sorted(commands))}")
    sys.argv = [command, *arguments]
    commands[command].load()()
