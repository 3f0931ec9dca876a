"""The streaming engine: carries out a plan within a memory budget, resumably, and verifies the result."""

from .against import RecipeReport, verify_recipe
from .report import Report, Stage
from .running import Progress, RunOptions, run
from .verify import VerifyReport, verify

__all__ = [
    "Progress",
    "RecipeReport",
    "Report",
    "RunOptions",
    "Stage",
    "VerifyReport",
    "run",
    "verify",
    "verify_recipe",
]
