"""The streaming engine: carries out a plan within a memory budget, resumably, and verifies the result."""

from .report import Report, Stage
from .running import RunOptions, run

__all__ = ["Report", "RunOptions", "Stage", "run"]
