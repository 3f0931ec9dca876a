"""Run a command of FusionBench with fastmerge's kernels, and say at the end what they served."""

from __future__ import annotations

import click

from ...errors import FastmergeError
from ..commands import run_command
from . import patch


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", metavar="COMMAND")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENTS]...")
def main(command: str, arguments: tuple[str, ...]) -> None:
    """Run FusionBench's COMMAND (fusion_bench) with its ARGUMENTS on fastmerge's kernels."""
    try:
        patched = patch()
    except FastmergeError as error:
        raise click.ClickException(str(error)) from None
    try:
        run_command("fusion_bench", command, arguments)
    finally:
        click.echo(patched.report, err=True)


if __name__ == "__main__":
    main(prog_name="python -m fastmerge.integrations.fusion_bench")
