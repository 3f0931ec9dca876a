"""Merging the models of a FusionBench model pool."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from ...errors import FastmergeError
from ...methods import find_method
from ...state_dicts import merge_state_dicts
from ..calls import Uncovered

PRETRAINED = "_pretrained_"


def pool_of(models: Any) -> Any:
    """Return a model pool; a mapping of models becomes one."""
    from fusion_bench.modelpool import BaseModelPool

    return models if isinstance(models, BaseModelPool) else BaseModelPool(models)


def merge_pool(
    modelpool: Any,
    *,
    method: str,
    semantics: str | None = None,
    seed: int = 0,
    inplace: bool = True,
    base: str | None = PRETRAINED,
    **parameters: Any,
) -> nn.Module:
    """Merge the models of a pool by any method; return the base (or the first model) with the merged weights.

    Args:
        modelpool:  a pool, or models by name.
        inplace:    load the weights into that model itself, or into a copy.
        base:       the name of the base; None where the method takes none.
        parameters: of the method, named as in recipes.
    Raises:
        Uncovered: a model is no plain module, or fastmerge refuses to merge them.
    """
    pool = pool_of(modelpool)
    start = None if base is None else _module(pool, base)
    models = [_module(pool, name) for name in pool.all_model_names if name not in (base, PRETRAINED)]
    if not models:
        raise Uncovered("no model but the base")
    target = models[0] if start is None else start
    try:
        with torch.no_grad():
            merged = merge_state_dicts(start, models, method=method, semantics=semantics, seed=seed, **parameters)
            target = target if inplace else deepcopy(target)
            target.load_state_dict(merged)
    except (FastmergeError, ValueError) as error:
        raise Uncovered.refused(error) from error
    return target


def _module(pool: Any, name: str) -> nn.Module:
    model = pool.load_model(name)
    if not isinstance(model, nn.Module):
        raise Uncovered(f"a model of type {type(model).__name__}")
    if getattr(model, "_fusion_bench_target_modules", None):
        raise Uncovered("target modules of a model")
    return model


def takes_base(method: str, pool: Any) -> str | None:
    """Return the name of the base for ``merge_pool``: where the method requires one, or takes one that is there."""
    wanted = find_method(method).base
    has = PRETRAINED in pool.all_model_names
    return PRETRAINED if wanted == "required" or (wanted == "optional" and has) else None


def plain(value: Any) -> Any:
    """Return a value of a configuration as Python's own lists and dicts."""
    from omegaconf import OmegaConf

    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True)
    return dict(value) if isinstance(value, Mapping) else value
