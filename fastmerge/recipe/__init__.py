"""Recipes: mergekit YAML, typed and checked."""

from .checks import check
from .json_schema import schema
from .loading import load
from .parts import Part, Parts, every_part, inputs_of, parts_of
from .resolving import resolve
from .types import Branch, ModelRef, Module, Recipe, Rule, Setting, SliceSpec, SourceSpec, TokenizerSpec, TokenSpec

__all__ = [
    "Branch",
    "ModelRef",
    "Module",
    "Part",
    "Parts",
    "Recipe",
    "Rule",
    "Setting",
    "SliceSpec",
    "SourceSpec",
    "TokenSpec",
    "TokenizerSpec",
    "check",
    "every_part",
    "inputs_of",
    "load",
    "parts_of",
    "resolve",
    "schema",
]
