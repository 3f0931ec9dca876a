"""``fastmerge doctor``."""

from __future__ import annotations

import click

from ._errors import Command
from ._options import JSON
from ._output import print_facts, print_json


@click.command(cls=Command)
@JSON
def doctor(as_json: bool) -> None:
    """Say what is installed here, which backend each operation uses, and why."""
    from ..reports.doctor import diagnose

    sections = diagnose()
    if as_json:
        print_json(sections)
        return
    for title, facts in sections.items():
        click.echo(title)
        print_facts((f"  {name}", value or "not installed") for name, value in facts.items())
        click.echo()
