"""Mixtures of experts that are built from dense models: architectures, rows of the output, and router weights."""

from .families import Shape, mixture_config
from .rows import pair_mixture

__all__ = ["Shape", "mixture_config", "pair_mixture"]
