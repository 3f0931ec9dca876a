"""What ``adapter_config.json`` may say: kinds that fold, numbers and patterns of the right type."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from ...errors import CheckpointError
from .patterns import compile_pattern
from .stored import REMEDY

__all__ = ["check_config", "is_number"]

# Kinds that fold, and the numbers that their config must have.
_NUMBERS = {
    "LORA": ("r", "lora_alpha"),
    "ADALORA": ("init_r", "lora_alpha"),
    "LOHA": ("r", "alpha"),
    "LOKR": ("r", "alpha"),
    "IA3": (),
    "VERA": ("r",),
    "OFT": (),
    "BOFT": (),
    "LN_TUNING": (),
    "TRAINABLE_TOKENS": (),
}

# Kinds that change what a model is given, or choose as it runs: no weights are equal to them.
_NO_WEIGHTS = (
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE",
    "XLORA", "POLY",
)  # fmt: skip

# Options of LoRA under which an adapter is something else than low-rank terms.
_VARIANTS = {
    "layer_replication": "it changes how many layers the model has",
    "alora_invocation_tokens": "an activated LoRA acts from its invocation tokens on, so no weights are equal to it",
    "arrow_config": "Arrow chooses between adapters as the model runs, so no weights are equal to it",
    "use_qalora": "QA-LoRA pools its input",
    "use_bdlora": "BD-LoRA's factors are block-diagonal",
    "velora_config": "VeLoRA is not folded",
    "kasa_config": "KaSA changes the base's weights",
    "monteclora_config": "MonteCLoRA draws its factors at random",
}

# Initializations that change the base's weights: the adapter does not belong to the base as it is stored.
_CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
_CONVERT = (
    "with PEFT, save the adapter before the training as INIT, with init_lora_weights=True in its config, and after it "
    "with save_pretrained(OUT, path_initial_model_for_weight_conversion=INIT): OUT is plain LoRA of the original base"
)
_MERGE = "load it with PEFT on the base that it was trained on, merge_and_unload, and name the result"


def check_config(path: str, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError with every reason why an adapter of this config cannot be folded."""
    said = config.get("peft_type")
    kind = said if isinstance(said, str) else repr(said)
    if kind in _NO_WEIGHTS:
        what = f"peft_type {kind} changes no weights of its base, so that it cannot be folded"
        raise CheckpointError(f"{path}: {what} (load it with PEFT on the merged model)")
    if kind not in _NUMBERS:
        known = ", ".join(_NUMBERS)
        raise CheckpointError(f"{path}: peft_type is {kind!r}, expected one of {known} ({REMEDY})")
    reasons = list(_unsupported(config))
    if reasons:
        raise CheckpointError(f"{path}: {'; '.join(reasons)} ({_remedy(config)})")
    _check_patterns(path, config)


def is_number(value: object) -> TypeGuard[float]:
    """True for a finite number of a size that a rank or a scale may have."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e9


def _unsupported(config: Mapping[str, Any]) -> Iterator[str]:
    kind = config["peft_type"]
    if kind == "LORA":
        yield from (f"{key} is not offered: {why}" for key, why in _VARIANTS.items() if config.get(key))
        start = config.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
            yield f"init_lora_weights {start!r} changes the base's weights"
    if kind == "VERA" and not config.get("save_projection", True):
        yield "save_projection is false: the projections that all VeRA modules share are not in the file"
    for key in _NUMBERS[kind]:
        value = config.get(key)
        if not is_number(value) or (key in ("r", "init_r") and value < 1):
            yield f"{key} is {value!r}, expected a number"
    terms, bound = config.get("num_cayley_neumann_terms", 5), config.get("eps", 6e-5)
    if kind == "OFT" and not (isinstance(terms, int) and 0 < terms < 100 and is_number(bound)):
        yield f"num_cayley_neumann_terms and eps are {terms!r} and {bound!r}, expected numbers"


def _remedy(config: Mapping[str, Any]) -> str:
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(_CHANGES_BASE):
        return _MERGE if start.startswith("loftq") else f"{_CONVERT}; or {_MERGE}"
    return REMEDY


def _check_patterns(path: str, config: Mapping[str, Any]) -> None:
    for key in ("modules_to_save", "target_parameters"):
        listed = config.get(key) or []
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise CheckpointError(f"{path}: {key} is {listed!r}, expected a list of names (save it again)")
    # AdaLoRA's pattern says which directions were kept; the file holds no others.
    for key in ("rank_pattern", "alpha_pattern") if config["peft_type"] != "ADALORA" else ():
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            raise CheckpointError(f"{path}: {key} is {patterns!r}, expected a mapping from names to numbers")
        for pattern, value in patterns.items():
            if not is_number(value) or (key == "rank_pattern" and value < 1):
                raise CheckpointError(f"{path}: {key}: {pattern!r} is {value!r}, expected a number")
            compile_pattern(pattern, f"{path}: {key}")
