"""What N fine-tuned models did to their base: a page with pictures, made by streaming."""

from .run import analyze
from .theorem import Collapse, rank_collapse
from .types import AnalysisReport

__all__ = ["AnalysisReport", "Collapse", "analyze", "rank_collapse"]
