"""Plans: everything about a merge that is decided before tensor data moves."""

from .build import DEFAULT_SHARD_SIZE, make_plan
from .documents import plan_all

__all__ = ["DEFAULT_SHARD_SIZE", "make_plan", "plan_all"]
