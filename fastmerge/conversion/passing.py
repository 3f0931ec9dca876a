"""Conversions into a folder of the hub and into a checkpoint of training: merges of one model, which passes through."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..api import merge
from ..recipe.writing import Table, of_training, write_recipe

if TYPE_CHECKING:
    from ..engine import Report

__all__ = ["passing", "to_dcp", "to_hub"]


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
    return merge(passing(model, "a folder of the hub", names, config_source, dtype), out, **options)


def to_dcp(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    names: Table | None = None,
    config_source: str | None = None,
    dtype: str | None = None,
    key: str | None = None,
    like: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Report:
    """Write a model as a checkpoint of torch.distributed.checkpoint: streamed, resumable, verifiable as any merge.

    Args:
        model, config_source, dtype: as in ``to_hub``.
        names: a table of names, as for inputs, read backwards: the hub's names become the trainer's.
        key, like, options: of ``merge``.
    Raises:
        InvalidInput, FastmergeError: as ``merge``.
    """
    recipe = passing(model, "a checkpoint of training", names, config_source, dtype)
    return merge(recipe, out, format="dcp", key=key, like=like, **options)


def passing(
    model: str | os.PathLike[str],
    what: str,
    names: Table | None = None,
    config_source: str | None = None,
    dtype: str | None = None,
) -> str:
    """Return the recipe of a conversion, as text; ``what`` is what the model becomes."""
    place = os.fspath(model)
    recipe: dict[str, Any] = {"description": f"{place} as {what}", "merge_method": "passthrough"}
    recipe |= {"models": [{"model": place}]} | ({} if dtype is None else {"dtype": dtype})
    return write_recipe(recipe | of_training(names, config_source))
