"""Merging tensors that are sharded over the ranks of a device mesh: every rank merges the part that it holds."""

from __future__ import annotations

from .driver import merge_shards
from .jobs import ShardJob
from .layout import Layout
from .ranks import Agreement, Ranks

__all__ = ["Agreement", "Layout", "Ranks", "ShardJob", "merge_shards"]
