"""Checkpoints of training as models of the hub: names by a table, config and tokenizer from another folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from ..errors import CheckpointError, InvalidInput, Problem
from .distributed import is_distributed
from .distributed.tables import NameTable
from .folder import read_json
from .types import Checkpoint

__all__ = ["as_hub_model", "as_hub_models", "is_trained"]


def is_trained(checkpoint: Checkpoint) -> bool:
    """True for a checkpoint that was read as one of torch.distributed.checkpoint."""
    return is_distributed([os.path.basename(file.path) for file in checkpoint.files])


def as_hub_models(
    checkpoints: Sequence[Checkpoint], names: NameTable | None, config_source: str | None = None
) -> list[Checkpoint]:
    """Return checkpoints as ``as_hub_model`` does.

    Raises:
        InvalidInput:    names or a config are given, and no checkpoint is of training.
        CheckpointError: as ``as_hub_model``.
    """
    given = [key for key, value in (("names", names), ("config", config_source)) if value is not None]
    if given and not any(map(is_trained, checkpoints)):
        places = " and ".join(checkpoint.place for checkpoint in checkpoints)
        what = f"is for checkpoints of torch.distributed.checkpoint; of {places}, none is one"
        raise InvalidInput([Problem(key, what, "leave it out") for key in given])
    return [as_hub_model(checkpoint, names, config_source) for checkpoint in checkpoints]


def as_hub_model(checkpoint: Checkpoint, names: NameTable | None, config_source: str | None) -> Checkpoint:
    """Return a checkpoint of training with the hub's names and with a config; any other one as it is.

    Args:
        names:         None keeps the names that it has.
        config_source: folder whose config and tokenizer it gets, where it has no config itself.
    Raises:
        CheckpointError: the table leaves names over or gives one twice, or the folder has no ``config.json``.
    """
    if not is_trained(checkpoint):
        return checkpoint
    if names is not None:
        hub = names.to_hub(checkpoint.tensors, checkpoint.place)
        kept = {own: entry for name, entry in checkpoint.tensors.items() if (own := hub[name]) is not None}
        left = {name: "left out by the table of names" for name in checkpoint.tensors if hub[name] is None}
        if not kept:
            raise CheckpointError(f"{checkpoint.place}: names leaves every tensor out (name those of the model)")
        checkpoint = replace(checkpoint, tensors=kept, left_out={**checkpoint.left_out, **left})
    if config_source is not None and checkpoint.config is None:
        folder = os.path.abspath(os.path.expanduser(config_source))
        config = read_json(os.path.join(folder, "config.json"))
        checkpoint = replace(checkpoint, folder=folder, config=config, source=checkpoint.place)
    return checkpoint
