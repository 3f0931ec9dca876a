"""Layouts of experts: a tensor for each, as on the hub, or one for all of a layer, as transformers 5 has them."""

from .entries import with_entries
from .units import as_units

__all__ = ["as_units", "with_entries"]
