"""Run one of mergekit's own commands with fastmerge's kernels, and say at the end what they served."""

from __future__ import annotations

import click

from ...errors import FastmergeError
from ..commands import run_command
from . import patch


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--exact-rounding", is_flag=True, help="Round as mergekit does where its steps are known.")
@click.option(
    "--random", type=click.Choice(["counter", "mergekit"]), default="counter", show_default=True,
    help="Whose random masks.",
)  # fmt: skip
@click.argument("command", metavar="COMMAND")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENTS]...")
def main(exact_rounding: bool, random: str, command: str, arguments: tuple[str, ...]) -> None:
    """Run mergekit's COMMAND (mergekit-yaml, mergekit-multi, ...) with its ARGUMENTS on fastmerge's kernels."""
    try:
        patched = patch(exact_rounding=exact_rounding, random=random)  # type: ignore[arg-type]
    except FastmergeError as error:
        raise click.ClickException(str(error)) from None
    try:
        run_command("mergekit", command, arguments)
    finally:
        click.echo(patched.report, err=True)


if __name__ == "__main__":
    main(prog_name="python -m fastmerge.integrations.mergekit")
