"""``adapter_config.json``, as PEFT reads it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..plan.models import OpenModel

__all__ = ["write_config"]


def write_config(path: Path, base: OpenModel, ranks: Mapping[str, int], saved: Sequence[str]) -> None:
    """Write the configuration of an adapter of ``base``: rank by module, and the modules that are stored whole.

    alpha is the rank everywhere, so the scale of every module is 1.
    """
    rank = max(ranks.values())
    others = {module: r for module, r in ranks.items() if r != rank}
    reference = base.reference.path
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": _task(base),
        "base_model_name_or_path": os.path.abspath(reference) if os.path.isdir(reference) else reference,
        "revision": base.reference.revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": _targets(base, ranks),
        "modules_to_save": sorted(set(saved)) or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
    path.write_text(json.dumps(config, indent=2) + "\n")


def _targets(base: OpenModel, ranks: Mapping[str, int]) -> list[str]:
    """Return the last parts of the modules' names, as is usual; whole names where those would match other modules."""
    last = {module.rpartition(".")[2] for module in ranks}
    modules = {name.removesuffix(".weight") for name in base.tensors if name.endswith(".weight")}
    alike = {module for module in modules if module.rpartition(".")[2] in last}
    return sorted(last if alike <= ranks.keys() else ranks)


def _task(base: OpenModel) -> str | None:
    names = (base.checkpoint.config or {}).get("architectures") or []
    return "CAUSAL_LM" if any(str(name).endswith("ForCausalLM") for name in names) else None
