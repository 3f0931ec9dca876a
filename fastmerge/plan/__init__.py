"""Plans: everything about a merge that is decided before tensor data moves."""

from .build import DEFAULT_SHARD_SIZE, make_plan

__all__ = ["DEFAULT_SHARD_SIZE", "make_plan"]
