"""Tensors that are sharded over a device mesh (DTensor): merged by parts, each on the rank that holds it."""

from __future__ import annotations

from .merge import merge_parts
from .parts import Prepared, options_of
from .tensors import is_sharded, like_shard, local, mesh_of

__all__ = ["Prepared", "is_sharded", "like_shard", "local", "merge_parts", "mesh_of", "options_of"]
