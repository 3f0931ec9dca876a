"""mergekit's options: those with a meaning here are obeyed, the others accepted with a note in their own spelling."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import click

from ..devices.names import DEFAULT
from ._options import ShardSize, together

_ALWAYS = "it is always so"

# flag (as click declares it): type of its value or None for a switch, and by its value what is said when it is given;
# a value that is not there says nothing, because it asks for what is done anyway.
IGNORED: dict[str, tuple[Any, dict[Any, str]]] = {
    "--read-to-gpu/--no-read-to-gpu": (None, {True: "--device says where tensors are merged"}),
    "--low-cpu-memory/--no-low-cpu-memory": (None, {True: "memory is bounded by --ram and --vram"}),
    "--lazy-unpickle/--no-lazy-unpickle": (None, {False: "every input is read in ranges, .bin files too"}),
    "--async-write/--no-async-write": (None, {False: "reading, computing and writing always overlap"}),
    "--write-threads": (int, {...: "--threads sets the workers"}),
    "--clone-tensors/--no-clone-tensors": (None, {}),
    "--trust-remote-code/--no-trust-remote-code": (None, {True: "no code of a model is ever run"}),
    "--lora-merge-cache": (str, {...: "adapters are folded in while streaming, nothing is cached"}),
    "--lora-merge-dtype": (str, {...: "adapters are folded in float32, and rounded once with the merge"}),
    "--safe-serialization/--no-safe-serialization": (None, {False: "the output is always safetensors"}),
}
MAPPED = {
    "allow_crimes": "allow_mixed_types",
    "unsafe_truncate_embeddings": "truncate_embeddings",
    "copy_tokenizer": "copy_tokenizer",
    "write_model_card": "model_card",
    "random_seed": "seed",
    "out_shard_size": "shard_size",
    "num_threads": "threads",
}


def mergekit_flags(*listed: str) -> Callable:
    """Return a decorator that adds mergekit's options to a command. ``translate`` reads what they were set to.

    All are accepted, so that a command of mergekit can be checked before it is run; of those that only a run obeys,
    the ``listed`` ones are in its help.
    """

    def of_runs(flag: str, **settings: Any) -> Callable:
        return click.option(flag, hidden=option_name(flag) not in listed, **settings)

    options = [
        click.option("--allow-crimes/--no-allow-crimes", default=None, help="Allow models of different types."),
        click.option(
            "--unsafe-truncate-embeddings/--no-unsafe-truncate-embeddings",
            default=None,
            help="Cut vocabularies of different sizes to the smallest; ids must mean the same tokens.",
        ),
        click.option("--copy-tokenizer/--no-copy-tokenizer", default=None, help="Copy a tokenizer.  [default: yes]"),
        click.option("--write-model-card/--no-write-model-card", default=None, help="Write README.md.  [default: yes]"),
        click.option("--random-seed", type=int, help="Same as --seed."),
        of_runs("--out-shard-size", type=ShardSize(), help="As --shard-size; 5B is 5e9 bytes."),
        of_runs("--num-threads", type=click.IntRange(min=1), help="Same as --threads."),
        of_runs("--cuda/--no-cuda", default=None, help="Same as --device auto, or cpu."),
        click.option("--multi-gpu/--no-multi-gpu", default=None, hidden=True, help="Same as --device auto."),
        click.option("--gpu-rich", is_flag=True, default=None, hidden=True, help="Same as --device auto."),
        click.option("--transformers-cache", type=str, help="Folder of models that are downloaded from the hub."),
        click.option("-v", "verbosity", count=True, hidden=True, help="Nothing: plan prints the details."),
    ]
    for flag, (kind, notes) in IGNORED.items():
        value = {"is_flag": True, "default": None} if kind is None else {"type": kind}
        said = next(iter(notes.values()), _ALWAYS)
        options.append(click.option(flag, option_name(flag), **value, hidden=True, help=said))
    return together(*options)


def translate(given: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Return the options that mergekit's stand for, and say which ones mean nothing here."""
    for flag, (_, notes) in IGNORED.items():
        value = given[option_name(flag)]
        if value is None:
            continue
        reason = notes.get(value) if isinstance(value, bool) else notes.get(...)
        if reason:
            say(f"{_spelling(flag, value)} means nothing here: {reason}")
    if given["verbosity"]:
        say("-v means nothing here: plan prints the details")
    if given["transformers_cache"] is not None:
        # huggingface_hub reads it when it is imported, which only a download does.
        os.environ["HF_HUB_CACHE"] = given["transformers_cache"]
    mapped = {ours: given[theirs] for theirs, ours in MAPPED.items() if given[theirs] is not None}
    for theirs, ours in MAPPED.items():
        if ours in mapped and _is_given(ours) and given[ours] != mapped[ours]:
            flags = " and ".join(f"--{name.replace('_', '-')} {given[name]}" for name in (ours, theirs))
            raise click.UsageError(f"{flags} are two names of one option; give one")
    return mapped | {"device": device_of(given)}


def device_of(given: Mapping[str, Any]) -> str:
    """Return the device that options name: mergekit's own --device, beside its --cuda, is the one of this command."""
    if given.get("device") is not None:
        return given["device"]
    gpus = given["cuda"] or given["multi_gpu"] or given["gpu_rich"]
    return "auto" if gpus else "cpu" if given["cuda"] is False else DEFAULT


def option_name(flag: str) -> str:
    """Return how click names the option of a flag."""
    return flag.split("/")[0].lstrip("-").replace("-", "_")


def _is_given(name: str) -> bool:
    """True where the command line has an option, and not its default alone."""
    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _spelling(flag: str, value: Any) -> str:
    """Return a flag as it was given."""
    return flag.split("/")[-1 if value is False else 0]
