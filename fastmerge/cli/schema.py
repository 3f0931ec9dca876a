"""``fastmerge schema``: the JSON schema of recipes, for editors."""

from __future__ import annotations

import click

from ._errors import Command
from ._output import print_json


@click.command(cls=Command)
@click.option("--strict", is_flag=True, help="Forbid keys that have no effect, too.")
def schema(strict: bool) -> None:
    """Print the JSON schema of recipes, for editors that complete and check YAML."""
    from ..recipe import schema as recipe_schema

    print_json(recipe_schema(strict=strict))
