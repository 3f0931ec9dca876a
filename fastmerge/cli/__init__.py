"""The command ``fastmerge``. A thin layer: it reads options, calls the package, and prints.

Modules of this folder import click and nothing heavy; torch and the engine are imported by the commands that use them.
"""

from __future__ import annotations

import sys
import traceback

import click

from ..errors import FastmergeError
from ._ending import end
from ._errors import FAILED, Commands, Failure
from ._help import Loaded
from ._version import show_version
from .others import OTHERS

__all__ = ["main", "run"]


SECTIONS = {
    "Merge": ("merge", "multi", "average", "moe", "merge-adapters"),
    "Look before": ("plan", "check", "methods", "schema"),
    "Look after": ("verify", "inspect", "diff", "analyze"),
    "Take apart and convert": ("extract", "emr", "convert"),
    "This machine": ("doctor", "bench", "clean", "demo"),
}

_MODULES = {name: name.replace("-", "_") for names in SECTIONS.values() for name in names}
_MODULES |= {"multi": "merge", "plan": "merge", "check": "merge", "diff": "compare"}


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option("--version", is_flag=True, help="Show the version; with --json what it runs on, too.")
@click.option("--json", "as_json", is_flag=True, help="With --version: print JSON.")
@click.option(
    "--install-completion",
    metavar="[bash|zsh|fish]",
    is_flag=False,
    flag_value="auto",
    help="Let a shell complete commands and options. Without a name: the shell in use.",
)
@click.pass_context
def main(context: click.Context, version: bool, as_json: bool, install_completion: str | None) -> None:
    """Merge the weights of fine-tuned language models: exact, streamed, resumable and verifiable."""
    if version:
        show_version(as_json)
    elif install_completion is not None:
        from ._completion import install

        try:
            click.echo(install(install_completion, main))
        except FastmergeError as error:
            raise Failure(error, as_json=False) from error
    elif context.invoked_subcommand is None:
        click.echo(context.get_help())
    else:
        return
    context.exit()


main.commands = Loaded(__name__, _MODULES, OTHERS)
main.sections = SECTIONS


def run() -> None:
    """Carry out the command that the arguments of this process name, and end the process."""
    try:
        main(prog_name="fastmerge")
    except SystemExit as finished:
        end(finished.code)
        raise
    except Exception:
        # Not Python's own status, 1, by which verify and diff say that something differs.
        traceback.print_exc()
        report = "please report these lines, and what fastmerge doctor --report prints"
        click.echo(f"error: a mistake of fastmerge; {report}", err=True)
        end(FAILED)
        sys.exit(FAILED)
