"""Layouts of experts: a tensor for each, as on the hub, or one for all of a layer, as transformers 5 has them."""

from .entries import with_entries
from .naming import Naming, in_block, naming_of
from .units import as_units

__all__ = ["Naming", "as_units", "in_block", "naming_of", "with_entries"]
