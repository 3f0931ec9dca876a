"""Merging tensors that are sharded over the ranks of a device mesh: every rank merges the part that it holds."""

from __future__ import annotations

from .driver import ShardJob, merge_shards
from .ranks import Agreement, Ranks
from .runs import Runs, runs_of_ranks

__all__ = ["Agreement", "Ranks", "Runs", "ShardJob", "merge_shards", "runs_of_ranks"]
