"""Plans: everything about a merge that is decided before tensor data moves."""

from .build import DEFAULT_SHARD_SIZE, make_plan
from .forecast import Forecast, forecast

__all__ = ["DEFAULT_SHARD_SIZE", "Forecast", "forecast", "make_plan"]
