"""``adapter_config.json`` of merged adapters: the first one's, with the ranks and modules of the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .opened import Opened

__all__ = ["merged_config"]

# What narrows target_modules down, adapter by adapter.
_NARROWING = ("layers_to_transform", "layers_pattern", "exclude_modules")


def merged_config(opened: Sequence[Opened], ranks: Mapping[str, int], saved: Iterable[str]) -> dict[str, Any]:
    """Return the config of a merged adapter whose scale is 1 everywhere: alpha is the rank."""
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {module: own for module, own in ranks.items() if own != rank}
    return {
        **opened[0].config,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": _targets(opened, ranks),
        "modules_to_save": sorted(saved) or None,
        **dict.fromkeys(_NARROWING),
        "bias": next((own.config["bias"] for own in opened if own.config.get("bias", "none") != "none"), "none"),
        "use_rslora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _targets(opened: Sequence[Opened], modules: Mapping[str, int]) -> list[str]:
    """Return the names that the adapters target, if they say no more than those; else every module's whole name."""
    lists: list[Any] = [own.config.get("target_modules") for own in opened]
    plain = all(isinstance(own, list) for own in lists) and len({frozenset(own.ranks) for own in opened}) == 1
    if plain and not any(own.config.get(key) for own in opened for key in _NARROWING):
        return sorted({name for own in lists for name in own})
    return sorted(modules)
