"""Recipes: mergekit YAML, typed and checked."""

from .checks import check
from .document_schema import schema
from .loading import load
from .resolving import inputs_of, levels, parameters_of, resolve
from .types import Branch, ModelRef, Recipe, Setting, SliceSpec, SourceSpec, TokenizerSpec

__all__ = [
    "Branch",
    "ModelRef",
    "Recipe",
    "Setting",
    "SliceSpec",
    "SourceSpec",
    "TokenizerSpec",
    "check",
    "inputs_of",
    "levels",
    "load",
    "parameters_of",
    "resolve",
    "schema",
]
