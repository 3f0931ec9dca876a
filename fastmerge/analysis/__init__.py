"""What N fine-tuned models did to their base: a report with pictures, made by streaming."""

from .run import AnalysisReport, analyze
from .theorem import Collapse, rank_collapse

__all__ = ["AnalysisReport", "Collapse", "analyze", "rank_collapse"]
