"""Conversion into a folder of the hub: a merge of one model, whose tensors pass through."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..api import merge
from ..recipe.writing import Table, of_training, write_recipe

if TYPE_CHECKING:
    from ..engine import Report

__all__ = ["hub_recipe", "to_hub"]


def to_hub(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    names: Table | None = None,
    config_source: str | None = None,
    dtype: str | None = None,
    **options: Any,
) -> Report:
    """Write a checkpoint as a folder in the Hugging Face layout: streamed, resumable, verifiable as any merge.

    Args:
        model: as recipes name models: a checkpoint of training (``FOLDER::KEY``), GGUF, a quantized model.
        names: a file with the trainer's names and the hub's, or a mapping; see ``docs/training.md``.
        config_source: folder with config and tokenizer, where the checkpoint of training has none.
        dtype: of the output, rounded once; None keeps that of the checkpoint.
        options: of ``merge``.
    Raises:
        InvalidInput, FastmergeError: as ``merge``.
    """
    return merge(hub_recipe(model, names, config_source, dtype), out, **options)


def hub_recipe(
    model: str | os.PathLike[str],
    names: Table | None = None,
    config_source: str | None = None,
    dtype: str | None = None,
) -> str:
    """Return the recipe of ``to_hub``, as text."""
    place = os.fspath(model)
    recipe: dict[str, Any] = {"description": f"{place} as a folder of the hub", "merge_method": "passthrough"}
    recipe |= {"models": [{"model": place}]} | ({} if dtype is None else {"dtype": dtype})
    return write_recipe(recipe | of_training(names, config_source))
