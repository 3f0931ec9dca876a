"""Models under wrappers: of torch.compile, of data parallel, and of ``fully_shard``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ..errors import InvalidInput, Problem

__all__ = ["reshard", "unwrapped"]


def unwrapped(model: Any) -> Any:
    """Return the model in the wrapper of torch.compile or of DistributedDataParallel."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ == "DistributedDataParallel":
            inner = model.module
        if inner is None:
            return model
        model = inner


def reshard(model: Any) -> None:
    """Let modules under ``fully_shard`` drop whole weights that they keep after a forward pass.

    Until then they compute with these, not with their shards; and their parameters are no DTensors.
    """
    modules: Iterable[Any] = model.modules() if isinstance(model, torch.nn.Module) else ()
    for module in modules:
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if "FSDPModule" in kinds:
            module.reshard()
        elif "FullyShardedDataParallel" in kinds:
            what = "is under FullyShardedDataParallel, whose flat parameters have no shards of their own"
            raise InvalidInput([Problem("model", what, "shard it by torch.distributed.fsdp.fully_shard")])
