"""PEFT LoRA adapters: which tensors they change, by which factors."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import CheckpointError
from .folder import read_json, read_weights
from .types import InputFile, TensorEntry

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")

# Initializations that change the base's weights: the adapter does not belong to the base as it is stored.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
_UNSUPPORTED = (
    "modules_to_save",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
)
_REMEDY = "merge it into its base with PEFT (merge_and_unload) and name the result"


class LowRank(NamedTuple):
    """A LoRA term ``scale * up @ down`` of one tensor; ``up`` is [m, r] (lora_B), ``down`` [r, n] (lora_A)."""

    up: TensorEntry
    down: TensorEntry
    scale: float


def read_adapter(folder: str) -> tuple[InputFile, dict[str, LowRank]]:
    """Return the identity of an adapter's weights and its terms by the name of the base's tensor (``module.weight``).

    Raises:
        CheckpointError: not a LoRA adapter, or of a kind that is not a plain ``up @ down``; all reasons are named.
    """
    config_path = os.path.join(folder, "adapter_config.json")
    config = read_json(config_path) or {}
    reasons = list(_unsupported(config))
    if reasons:
        raise CheckpointError(f"{config_path}: {'; '.join(reasons)} ({_REMEDY})")
    for filename in ("adapter_model.safetensors", "adapter_model.bin"):
        path = os.path.join(folder, filename)
        if os.path.exists(path):
            file, tensors = read_weights(path)
            return file, _pair(path, config, tensors)
    raise CheckpointError(f"{folder}: no adapter_model.safetensors or adapter_model.bin (download the adapter again)")


def _unsupported(config: Mapping[str, Any]):
    """Yield what makes an adapter more than a sum of low-rank terms."""
    if config.get("peft_type") != "LORA":
        yield f"peft_type is {config.get('peft_type')!r}, expected 'LORA'"
    for key in ("use_dora", "lora_bias", "fan_in_fan_out", "use_qalora"):
        if config.get(key):
            yield f"{key} is not offered"
    if config.get("bias", "none") != "none":
        yield f"bias is {config['bias']!r}; trained biases are not offered"
    for key in _UNSUPPORTED:
        if config.get(key):
            yield f"{key} is not offered"
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        yield f"init_lora_weights {start!r} changes the base's weights"
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), int | float) or isinstance(config.get(key), bool):
            yield f"{key} is {config.get(key)!r}, expected a number"
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict):
            yield f"{key} is not a mapping"


def _pair(path: str, config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> dict[str, LowRank]:
    factors: dict[str, dict[str, TensorEntry]] = {}
    strange = []
    for name, entry in tensors.items():
        match = _FACTOR.fullmatch(name.removeprefix(_PREFIX))
        if match and len(entry.shape) == 2:
            factors.setdefault(match[1], {})[match[2]] = entry
        else:
            strange.append(name)
    strange += [f"{module} (only lora_{next(iter(pair))})" for module, pair in factors.items() if len(pair) == 1]
    if strange:
        listed = ", ".join(sorted(strange)[:5])
        raise CheckpointError(f"{path}: {len(strange)} tensors are no pair of LoRA matrices: {listed} ({_REMEDY})")
    terms = {}
    for module, pair in factors.items():
        up, down = pair["B"], pair["A"]
        rank = _by_pattern(config.get("rank_pattern"), module, config["r"])
        if not up.shape[1] == down.shape[0] == rank:
            raise CheckpointError(
                f"{path}: {module} has ranks {up.shape[1]} and {down.shape[0]}, but {rank} in its config "
                "(save the adapter again)"
            )
        alpha = _by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
        terms[f"{module}.weight"] = LowRank(up, down, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    return terms


def _by_pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """Return the value of the first pattern that matches the end of the module's name, as PEFT chooses it."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
