"""Tensors of which each rank holds a part (DTensor): which they are, their own parts, and parts as such tensors."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def is_sharded(tensor: Any) -> bool:
    """Return True for a DTensor, whatever its placement."""
    return type(tensor).__name__ == "DTensor" and isinstance(tensor, Tensor)


def local(tensor: Any) -> Any:
    """Return what lies on this rank: a DTensor's own part, anything else as it is. No collective, no copy."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def like_shard(part: Tensor, like: Any) -> Tensor:
    """Return a part of this rank as the DTensor that ``like`` is, or as it is where that one is none."""
    if not is_sharded(like):
        return part
    return type(like).from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def mesh_of(states: Iterable[Any]) -> DeviceMesh | None:
    """Return the mesh of the first tensor that is sharded over one, or None."""
    if "torch.distributed.tensor" not in sys.modules:  # so nothing can be
        return None
    for state in states:
        for tensor in state.values() if isinstance(state, Mapping) else ():
            if is_sharded(tensor):
                return tensor.device_mesh
    return None
