"""Text that fits the terminal: its width, and docstrings without their markup."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator

import click

# Lines of prose that are longer are hard to read; where output goes into a pipe they are as long.
WIDEST = 110


def fixed_width() -> int | None:
    """Return the columns of the terminal, or of COLUMNS; None in a pipe, where lines may be as long as they are."""
    if os.environ.get("COLUMNS", "").isdecimal() or sys.stdout.isatty():
        return max(40, shutil.get_terminal_size().columns)
    return None


def prose_width() -> int:
    """Return the columns that prose takes."""
    return min(WIDEST, fixed_width() or WIDEST)


def wrapped(text: str, indent: str = "", hanging: str | None = None) -> str:
    """Return a paragraph in lines that fit; ``hanging`` starts all but the first one."""
    hanging = indent if hanging is None else hanging
    return textwrap.fill(
        " ".join(text.split()), prose_width(), initial_indent=indent, subsequent_indent=hanging,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def plain(text: str) -> str:
    """Return a docstring without the markup of reStructuredText: literals lose their quotes, ``::`` becomes ``:``."""
    text = re.sub(r"``(.+?)``", r"\1", text, flags=re.DOTALL)
    text = re.sub(r":\w+:`(.+?)`", r"\1", text)
    return re.sub(r"::$", ":", text, flags=re.MULTILINE)


def show_doc(text: str) -> None:
    """Print a docstring: its paragraphs refilled, its indented lines as they are, as far as they fit."""
    click.echo("\n\n".join(_blocks(plain(text))))


def _blocks(text: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.splitlines()
        if any(line[:1].isspace() for line in lines):
            yield "\n".join(map(_line, lines))
        elif lines[0].startswith(("- ", "* ")):
            yield "\n".join(wrapped(item, hanging="  ") for item in re.split(r"\n(?=[-*] )", block))
        else:
            yield wrapped(block)


def _line(line: str) -> str:
    """Return a line whose spaces mean something; what does not fit goes on below its last column."""
    width = prose_width()
    if len(line) <= width:
        return line
    start = len(line) - len(line.lstrip())
    gaps = [gap.end() for gap in re.finditer(r"(?<=\S)\s{2,}", line) if gap.end() < width // 2]
    hanging = " " * (gaps[-1] if gaps else start + 2)
    head = line[: len(hanging)] if gaps else line[:start]
    return textwrap.fill(line[len(head) :], width, initial_indent=head, subsequent_indent=hanging)
