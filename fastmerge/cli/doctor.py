"""``fastmerge doctor``."""

from __future__ import annotations

import click

from ._errors import Command
from ._options import JSON
from ._output import print_facts, print_json


@click.command(cls=Command)
@click.option(
    "--report", is_flag=True, help="Print Markdown to paste into a bug report, without paths of this machine."
)
@JSON
def doctor(report: bool, as_json: bool) -> None:
    """Say what is installed here, which backend each operation uses, and why."""
    from ..reports import doctor as diagnosis

    sections = diagnosis.diagnose()
    if as_json:
        print_json(sections)
    elif report:
        click.echo(diagnosis.report(sections))
    else:
        for title, facts in sections.items():
            click.echo(title)
            print_facts((f"  {name}", value or "not installed") for name, value in facts.items())
            click.echo()
