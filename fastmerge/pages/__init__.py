"""Pages with pictures that open without a network: one template, SVG, and values on hover.

What a page says comes as ``Section``; ``analysis`` and ``merge_report`` write theirs with it.
"""

from .maps import MOST_PANELS, clustered, known, mean, model_maps, model_panels, pair_maps
from .page import Page, Section, Table, percent

__all__ = [
    "MOST_PANELS", "Page", "Section", "Table", "clustered", "known", "mean", "model_maps", "model_panels", "pair_maps",
    "percent",
]  # fmt: skip
