"""PEFT LoRA adapters: which tensors they change, by which factors, and which they replace."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import CheckpointError
from .folder import read_json, read_weights
from .patterns import compile_pattern
from .types import InputFile, TensorEntry

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.weight)?")
_MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.weight)?")
# What PEFT saves of the base itself: the tensor under an adapted embedding or head, and modules trained whole.
_OWN = re.compile(r"(.+)\.(?:base_layer|modules_to_save)\.(weight|bias)")

# Initializations that change the base's weights: the adapter does not belong to the base as it is stored.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
_UNSUPPORTED = (
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "lora_bias",
    "use_qalora",
)
_REMEDY = "merge it into its base with PEFT (merge_and_unload) and name the result"


class LowRank(NamedTuple):
    """A LoRA term of one tensor.

    Attributes:
        up, down:  [m, r] and [r, n], LoRA's B and A.
        scale:     of the product.
        embedding: the tensor is an embedding, [n, m]: the product is transposed.
        magnitude: DoRA's [m], to which the norm of each row of the sum is scaled; None for plain LoRA.
    """

    up: TensorEntry
    down: TensorEntry
    scale: float
    embedding: bool = False
    magnitude: TensorEntry | None = None


class LoraAdapter(NamedTuple):
    """What an adapter does to its base, by the names that the base has for its tensors.

    Attributes:
        file:     identity of its weights.
        terms:    what is added to a tensor.
        replaced: tensors that the adapter holds whole: modules and biases that were trained, adapted heads.
    """

    file: InputFile
    terms: dict[str, LowRank]
    replaced: dict[str, TensorEntry]


def read_adapter(folder: str) -> LoraAdapter:
    """Return what the PEFT LoRA adapter in ``folder`` does to its base.

    Raises:
        CheckpointError: not a LoRA adapter, or of a kind that is not offered; all reasons are named.
    """
    config_path = os.path.join(folder, "adapter_config.json")
    config = read_json(config_path) or {}
    reasons = list(_unsupported(config))
    if reasons:
        raise CheckpointError(f"{config_path}: {'; '.join(reasons)} ({_REMEDY})")
    _check_patterns(config_path, config)
    for filename in ("adapter_model.safetensors", "adapter_model.bin"):
        path = os.path.join(folder, filename)
        if os.path.exists(path):
            file, tensors = read_weights(path)
            if not tensors:
                raise CheckpointError(f"{path}: holds no tensor, so the adapter changes nothing (save it again)")
            return LoraAdapter(file, *_sort(path, config, _named(path, tensors)))
    raise CheckpointError(f"{folder}: no adapter_model.safetensors or adapter_model.bin (download the adapter again)")


def _unsupported(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what makes an adapter something else than LoRA terms and whole tensors."""
    if config.get("peft_type") != "LORA":
        yield f"peft_type is {config.get('peft_type')!r}, expected 'LORA'"
        return
    for key in _UNSUPPORTED:
        if config.get(key):
            yield f"{key} is not offered"
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        yield f"init_lora_weights {start!r} changes the base's weights"
    for key in ("r", "lora_alpha"):
        if not _is_number(config.get(key)):
            yield f"{key} is {config.get(key)!r}, expected a number"


def _check_patterns(path: str, config: Mapping[str, Any]) -> None:
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        raise CheckpointError(f"{path}: modules_to_save is {saved!r}, expected a list of names (save it again)")
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            raise CheckpointError(f"{path}: {key} is {patterns!r}, expected a mapping from names to numbers")
        for pattern, value in patterns.items():
            if not _is_number(value):
                raise CheckpointError(f"{path}: {key}: {pattern!r} is {value!r}, expected a number")
            compile_pattern(pattern, f"{path}: {key}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e9


def _named(path: str, tensors: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Return the tensors without the prefix that PEFT gives them."""
    named = {name.removeprefix(_PREFIX): entry for name, entry in tensors.items()}
    if len(named) < len(tensors):
        twice = sorted(name for name in tensors if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) in tensors)
        listed = ", ".join(twice[:5])
        raise CheckpointError(f"{path}: {listed} stands there with and without {_PREFIX} (save the adapter again)")
    return named


def _sort(
    path: str, config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]
) -> tuple[dict[str, LowRank], dict[str, TensorEntry]]:
    """Return the terms and the whole tensors of an adapter."""
    factors: dict[str, dict[str, TensorEntry]] = {}
    embeddings: set[str] = set()
    magnitudes: dict[str, TensorEntry] = {}
    replaced: dict[str, TensorEntry] = {}
    strange = []
    for name, entry in tensors.items():
        if (match := _FACTOR.fullmatch(name)) and len(entry.shape) == 2:
            factors.setdefault(match[1], {})[match[3]] = entry
            if match[2]:
                embeddings.add(match[1])
        elif (match := _MAGNITUDE.fullmatch(name)) and config.get("use_dora"):
            magnitudes[match[1]] = entry
        elif match := _OWN.fullmatch(name):
            replaced[f"{match[1]}.{match[2]}"] = entry
        elif _is_whole(name, config):
            replaced[name] = entry
        else:
            strange.append(name)
    strange += [f"{module} (only lora_{next(iter(pair))})" for module, pair in factors.items() if len(pair) == 1]
    strange += [f"{module} (a magnitude without factors)" for module in magnitudes.keys() - factors.keys()]
    if config.get("use_dora"):
        strange += [f"{module} (without its magnitude)" for module in factors.keys() - magnitudes.keys()]
        strange += [f"{module} (DoRA of an embedding)" for module in embeddings & magnitudes.keys()]
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
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        terms[f"{module}.weight"] = LowRank(up, down, scale, module in embeddings, magnitudes.get(module))
    return terms, replaced


def _is_whole(name: str, config: Mapping[str, Any]) -> bool:
    """True for a tensor that was trained itself: a bias, or of a module to save (PEFT compares the ends of names)."""
    module, _, kind = name.rpartition(".")
    if kind == "bias" and config.get("bias", "none") != "none":
        return True
    parts = module.split(".")
    modules = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(outer.endswith(own) for own in config.get("modules_to_save") or () for outer in modules)


def _by_pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """Return the value of the first pattern that matches the end of the module's name, as PEFT chooses it."""
    for pattern, value in (patterns or {}).items():
        if compile_pattern(pattern, "adapter_config.json").match(module):
            return value
    return default
