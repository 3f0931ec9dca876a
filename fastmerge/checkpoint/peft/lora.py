"""LoRA and AdaLoRA: pairs of factors, DoRA's magnitudes, biases of factors, terms of stacked experts."""

from __future__ import annotations

import math
import re

from ..types import TensorEntry
from .stored import Stored, by_pattern
from .types import Change, Experts

__all__ = ["sort_adalora", "sort_lora"]

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<role>(?:embedding_)?[AB])(?:\.weight)?")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_(?P<role>magnitude)_vector(?:\.weight)?")
_BIAS = re.compile(r"(?P<module>.+)\.lora_B\.(?P<role>bias)")
_ADALORA = re.compile(r"(?P<module>.+)\.lora_(?P<role>[ABE])")
_NESTED = ".base_layer"


def sort_lora(stored: Stored) -> None:
    """Take the factors of every module, what scales them, and what is added to biases."""
    config = stored.config
    factors = stored.take(_FACTOR)
    magnitudes = stored.take(_MAGNITUDE) if config.get("use_dora") else {}
    biases = stored.take(_BIAS) if config.get("lora_bias") else {}
    stored.strange += [f"{module} (a magnitude without factors)" for module in magnitudes.keys() - factors.keys()]
    stored.strange += [f"{module} (a bias without factors)" for module in biases.keys() - factors.keys()]
    if config.get("target_parameters"):
        _sort_experts(stored, factors)
    for module, parts in factors.items():
        _sort_module(stored, module, parts, magnitudes.get(module), biases.get(module))


def _sort_module(
    stored: Stored,
    module: str,
    parts: dict[str, TensorEntry],
    magnitude: dict[str, TensorEntry] | None,
    bias: dict[str, TensorEntry] | None,
) -> None:
    embedding = "embedding_A" in parts or "embedding_B" in parts
    up, down = (parts.get(f"{'embedding_' if embedding else ''}{side}") for side in "BA")
    if up is None or down is None or len(parts) > 2:
        stored.strange.append(f"{module} (only lora_{next(iter(parts))})")
        return
    if len(up.shape) != 2 or len(down.shape) != 2:
        stored.strange.append(f"{module} (factors of {len(up.shape)} dimensions)")
        return
    rank, scale = _rank_and_scale(stored, module)
    if not up.shape[1] == down.shape[0] == rank:
        what = f"{module} has ranks {up.shape[1]} and {down.shape[0]}, but {rank} in its config"
        raise stored.wrong(what, "save the adapter again")
    if stored.config.get("use_dora") and (magnitude is None or embedding):
        stored.strange.append(f"{module} ({'DoRA of an embedding' if embedding else 'without its magnitude'})")
        return
    if stored.config.get("lora_bias") and bias is None:
        stored.strange.append(f"{module} (without the bias of lora_B)")
    if magnitude is None:
        stored.change(f"{module}.weight", Change("lora", (up, down), scale, embedding=embedding))
    else:
        stored.change(f"{module}.weight", Change("dora", (up, down, magnitude["magnitude"]), scale))
    if bias is not None:
        stored.change(f"{module}.bias", Change("vector", (bias["bias"],), scale))


def _rank_and_scale(stored: Stored, module: str) -> tuple[int, float]:
    config = stored.config
    rank = by_pattern(config.get("rank_pattern"), module, config["r"])
    alpha = by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return int(rank), alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _sort_experts(stored: Stored, factors: dict[str, dict[str, TensorEntry]]) -> None:
    """Take the factors of parameters: PEFT wraps a module once for each, so that the first lies innermost."""
    names: dict[str, list[str]] = {}
    for name in stored.config["target_parameters"]:
        module, _, parameter = name.rpartition(".")
        names.setdefault(module, []).append(parameter)
    for module in [m for m in factors if not m.endswith(_NESTED)]:
        own = [name for end in names if f".{module}".endswith(f".{end}") for name in names[end]]
        # The weight of a linear layer gets the term of a layer.
        if not own or own == ["weight"]:
            continue
        wrapped, pairs = module, []
        while wrapped in factors:
            parts = factors.pop(wrapped)
            if not stored.complete(wrapped, parts, ("B", "A")):
                return
            pairs.append((parts["B"], parts["A"]))
            wrapped += _NESTED
        numbers = {name: _rank_and_scale(stored, f"{module}.{name}") for name in own}
        ranks = {name: rank for name, (rank, _) in numbers.items()}
        scales = {name: scale for name, (_, scale) in numbers.items()}
        stored.experts[module] = Experts(tuple(pairs), ranks, scales)


def sort_adalora(stored: Stored) -> None:
    """Take ``lora_B diag(lora_E) lora_A``; the scale is ``lora_alpha / (init_r + 1e-5)``, whatever rank is left."""
    alpha, rank = stored.config["lora_alpha"], stored.config["init_r"]
    scale = (alpha if alpha > 0 else rank) / (rank + 1e-5)
    for module, parts in stored.take(_ADALORA).items():
        if not stored.complete(module, parts, "BAE"):
            continue
        up, down, values = parts["B"], parts["A"], parts["E"]
        if len(up.shape) != 2 or len(down.shape) != 2 or values.shape != (down.shape[0], 1):
            stored.strange.append(f"{module} (lora_E of shape {list(values.shape)})")
        elif up.shape[1] != down.shape[0]:
            raise stored.wrong(f"{module} has ranks {up.shape[1]} and {down.shape[0]}", "save the adapter again")
        elif down.shape[0]:
            stored.change(f"{module}.weight", Change("adalora", (up, down, values), scale))
