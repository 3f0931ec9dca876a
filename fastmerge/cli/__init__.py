"""The command ``fastmerge``. A thin layer: it reads options, calls the package, and prints.

Modules of this folder import click and nothing heavy; torch and the engine are imported by the commands that use them.
"""

from __future__ import annotations

import click

from .. import __version__
from ._errors import Commands
from .analyze import analyze
from .average import average
from .bench import bench
from .clean import clean
from .compare import diff
from .convert import convert
from .demo import demo
from .doctor import doctor
from .emr import emr
from .extract import extract
from .inspect import inspect
from .merge import check, merge, multi, plan
from .merge_adapters import merge_adapters
from .methods import methods
from .moe import moe
from .others import OTHERS
from .schema import schema
from .verify import verify

__all__ = ["main"]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="fastmerge")
def main() -> None:
    """Merge the weights of fine-tuned language models: exact, streamed, resumable and verifiable."""


COMMANDS = (
    merge, multi, average, moe, plan, check, verify, inspect, diff, analyze, extract, merge_adapters, emr, convert,
    methods, schema, clean, doctor, bench, demo,
)  # fmt: skip

for command in (*COMMANDS, *OTHERS):
    main.add_command(command)
