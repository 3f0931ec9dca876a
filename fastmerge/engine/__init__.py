"""The streaming engine: carries out a plan within a memory budget, resumably, and verifies the result."""

from .report import Report, Stage
from .running import Progress, RunOptions, run
from .verify import VerifyReport, verify

__all__ = ["Progress", "Report", "RunOptions", "Stage", "VerifyReport", "run", "verify"]
