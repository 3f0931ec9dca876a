"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..devices.names import DEFAULT, parse_devices
from ..sizes import DEFAULT_RAM, parse_size


class Size(click.ParamType):
    """A number of bytes: 4GiB, 500MB, 1000000."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Devices(click.ParamType):
    """auto, cpu, cuda, or GPUs such as cuda:0,cuda:1."""

    name = "devices"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            parse_devices(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return value


_FACTORS = {"k": 10**3, "m": 10**6, "b": 10**9}


class ShardSize(click.ParamType):
    """mergekit's size: a number with the suffix K, M or B for 10^3, 10^6 or 10^9 bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip().lower()
        factor = _FACTORS.get(text[-1:], 1)
        try:
            nbytes = int(float(text.rstrip("kmb")) * factor)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a size like 5B or 500M", param, ctx)
        if nbytes <= 0:
            self.fail(f"{value!r} is not a positive size", param, ctx)
        return nbytes


def together(*options: Callable) -> Callable:
    """Make one decorator of several, first on top."""

    def decorate(function: Callable) -> Callable:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


FLOATS = ("float32", "bfloat16", "float16")


def dtype_option(help: str) -> Callable:
    """Return the option ``--dtype`` of what is stored as float32 unless another one is asked for."""
    return click.option("--dtype", type=click.Choice(FLOATS), default="float32", show_default=True, help=help)


RECIPE = click.argument("recipe", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
QUIET = click.option("--quiet/--no-quiet", help="No progress, no notes.")
STRICT = click.option("--strict", is_flag=True, help="Make every note an error: keys and options without effect.")
SEED = click.option("--seed", type=int, help="Seed of random methods; replaces the recipe's own.")
SEMANTICS = click.option("--semantics", help="Whose definition of the method; replaces the recipe's own.")
SHARD_SIZE = click.option("--shard-size", type=Size(), default="5GB", show_default=True, help="Bytes per output file.")
RAM = click.option(
    "--ram",
    type=Size(),
    default=DEFAULT_RAM,
    show_default=True,
    help="Memory budget, beyond the interpreter and its packages.",
)
DEVICE = click.option(
    "--device",
    type=Devices(),
    help=f"Where to compute: auto, cpu, cuda (every GPU), or GPUs such as cuda:0,cuda:1.  [default: {DEFAULT}]",
)
VRAM = click.option("--vram", type=Size(), help="Memory budget on each GPU.  [default: 90 % of what is free]")
THREADS = click.option("--threads", "-j", type=click.IntRange(min=1), help="Worker threads.  [default: cores + 2]")
DISTRIBUTED = click.option(
    "--distributed",
    is_flag=True,
    help="Share the merge among the processes that torchrun starts; --ram, --threads and --vram are of each of them.",
)
# Seconds of --rank-timeout where none are given; no default of the option, which is refused without --distributed.
DEAD_AFTER = 120.0
RANK_TIMEOUT = click.option(
    "--rank-timeout",
    type=click.FloatRange(min=1),
    help="With --distributed: seconds after which a process that is not heard of counts as dead."
    f"  [default: {DEAD_AFTER:g}]",
)
NAMES = click.option(
    "--names",
    metavar="TABLE",
    type=click.Path(exists=True, dir_okay=False),
    help="YAML or JSON: a trainer's names of tensors and the hub's, for checkpoints of training (docs/training.md).",
)
FORMAT = together(
    click.option(
        "--format",
        type=click.Choice(("hf", "dcp")),
        default="hf",
        show_default=True,
        help="Of OUT: a folder of the hub, or a checkpoint of torch.distributed.checkpoint, for training.",
    ),
    click.option(
        "--key",
        help='With --format dcp: what leads to the model in the state; "" for nothing.  [default: model, or --like\'s]',
    ),
    click.option(
        "--like",
        metavar="FOLDER",
        help="With --format dcp: a checkpoint whose names and other items are taken over.",
    ),
)
CONFIG_SOURCE = click.option(
    "--config",
    "config_source",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False),
    help="Folder with config.json and tokenizer, for checkpoints of training that have none.",
)
BACKEND = click.option(
    "--backend",
    type=click.Choice(("auto", "reference", "cpu", "triton", "cuda")),
    default="auto",
    show_default=True,
    help="Pin a backend of the operations; all give the same bits.",
)
PLUGIN = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="A Python file with merge methods of your own; may be given several times.",
)
