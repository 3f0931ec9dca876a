"""Recipes: mergekit YAML, typed and checked."""
