"""mergekit's command line flags: the ones with a meaning here are mapped, the others are accepted with a note."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from ..devices.names import DEFAULT
from ._options import ShardSize, together

# flag (as click declares it): type of its value or None for a switch, what is said when it is given
IGNORED: dict[str, tuple[Any, str]] = {
    "--read-to-gpu/--no-read-to-gpu": (None, "--device says where tensors are merged"),
    "--low-cpu-memory/--no-low-cpu-memory": (None, "memory is bounded by --ram"),
    "--lazy-unpickle/--no-lazy-unpickle": (None, "every input is read in ranges, .bin files too"),
    "--async-write/--no-async-write": (None, "reading, computing and writing always overlap"),
    "--write-threads": (int, "--threads sets the workers"),
    "--clone-tensors/--no-clone-tensors": (None, "repeated layers are written as often as the recipe says"),
    "--trust-remote-code/--no-trust-remote-code": (None, "no code of a model is ever run"),
    "--lora-merge-cache": (str, "adapters are folded in while streaming, nothing is cached"),
    "--lora-merge-dtype": (str, "adapters are folded in float32"),
    "--copy-tokenizer/--no-copy-tokenizer": (None, "tokenizer files are always copied"),
    "--write-model-card/--no-write-model-card": (None, "a model card is always written"),
    "--safe-serialization/--no-safe-serialization": (None, "the output is always safetensors"),
    "-v": (None, "plan prints the details"),
}
MAPPED = {
    "allow_crimes": "allow_mixed_types",
    "random_seed": "seed",
    "out_shard_size": "shard_size",
    "num_threads": "threads",
}


def mergekit_flags(function: Callable) -> Callable:
    """Add mergekit's flags to a command (decorator). ``translate`` reads what they were set to."""
    options = [
        click.option("--allow-crimes/--no-allow-crimes", default=None, help="Allow models of different types."),
        click.option("--random-seed", type=int, help="Same as --seed."),
        click.option("--out-shard-size", type=ShardSize(), help="As --shard-size; 5B is 5e9 bytes."),
        click.option("--num-threads", type=click.IntRange(min=1), help="Same as --threads."),
        click.option("--cuda/--no-cuda", default=None, help="Same as --device auto, or cpu."),
        click.option("--multi-gpu/--no-multi-gpu", default=None, hidden=True, help="Same as --device auto."),
        click.option("--gpu-rich", is_flag=True, default=None, hidden=True, help="Same as --device auto."),
        click.option("--transformers-cache", type=str, help="Folder of models that are downloaded from the hub."),
    ]
    for flag, (kind, note) in IGNORED.items():
        value = {"is_flag": True, "default": None} if kind is None else {"type": kind}
        options.append(click.option(flag, _name(flag), **value, hidden=True, help=note))
    return together(*options)(function)


def translate(given: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Return the options that mergekit's flags stand for, and say which ones mean nothing here."""
    for flag, (_, note) in IGNORED.items():
        if given[_name(flag)] is not None:
            say(f"{flag.split('/')[0]} means nothing here: {note}")
    if given["transformers_cache"] is not None:
        # huggingface_hub reads it when it is imported, which only a download does.
        os.environ["HF_HUB_CACHE"] = given["transformers_cache"]
    mapped = {ours: given[theirs] for theirs, ours in MAPPED.items() if given[theirs] is not None}
    # mergekit's own --device, which is named beside --cuda, is the one of this command.
    if given["device"] is None:
        gpus = given["cuda"] or given["multi_gpu"] or given["gpu_rich"]
        mapped["device"] = "auto" if gpus else "cpu" if given["cuda"] is False else DEFAULT
    return mapped


def _name(flag: str) -> str:
    return flag.split("/")[0].lstrip("-").replace("-", "_")
