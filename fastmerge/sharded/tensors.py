"""Tensors of which each rank holds a part (DTensor): which they are, their own parts, and parts as such tensors."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
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
    """Return the mesh of most dimensions that a tensor is sharded over, the first of these; None where none is."""
    if "torch.distributed.tensor" not in sys.modules:  # so nothing can be
        return None
    tensors = (tensor for state in states if isinstance(state, Mapping) for tensor in state.values())
    meshes = {id(tensor.device_mesh): tensor.device_mesh for tensor in tensors if is_sharded(tensor)}
    return max(meshes.values(), key=lambda mesh: mesh.ndim, default=None)


def dimensions_of(part: DeviceMesh, mesh: DeviceMesh) -> tuple[int, ...] | None:
    """Return which dimensions of a mesh another one has, seen from this rank; None where it is no part of it."""
    if part == mesh:
        return tuple(range(mesh.ndim))
    here = mesh.get_coordinate()
    if part.device_type != mesh.device_type or here is None:
        return None
    for dims in combinations(range(mesh.ndim), part.ndim):
        line = tuple(slice(None) if dim in dims else at for dim, at in enumerate(here))
        if torch.equal(mesh.mesh[line], part.mesh):
            return dims
    return None
