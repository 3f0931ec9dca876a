"""What the metadata of a GGUF file say of a ``config.json``: the reverse of ``checkpoint.gguf.settings``.

llama.cpp knows many settings by heart. A config that says anything else is refused: the file would be another model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..checkpoint.gguf.architectures import ARCHITECTURES
from ..checkpoint.gguf.settings import COUNTS, LAYERS_OF_27B, LLAMA3, NEEDED, NUMBERS, llama3_factors

__all__ = ["Settings", "settings_of"]

_ACTIVATIONS = {"silu", "swish"}
_GELU = {"gelu_pytorch_tanh", "gelu", None}  # "gelu" in the first configs of Gemma, where the tanh form was meant
_EVERY = {"gemma2": 2, "gemma3": 6}
_THETA = {"mixtral": 1e6, "gemma3_text": 1e6}  # where a config does not say it; else 10000
_SOFTCAPPING = ("attn_logit_softcapping", "final_logit_softcapping")
# Members of a scaling that GGUF has no key for, and the values at which they change nothing.
_NEUTRAL = {
    "attention_factor": (None,),
    "beta_fast": (None, 32, 32.0),
    "beta_slow": (None, 1, 1.0),
    "truncate": (None, True),
}


@dataclass(frozen=True)
class Settings:
    """What a file says beside its tokenizer.

    Attributes:
        values:      metadata by key.
        frequencies: ``rope_freqs.weight``, what the frequencies are divided by; empty for a model without.
        notes:       what is lost, one sentence each.
    """

    values: dict[str, int | float | str]
    frequencies: list[float]
    notes: tuple[str, ...] = ()

    def count(self, key: str) -> int:
        """Return a count by its key without the architecture."""
        return int(self.values[f"{self.values['general.architecture']}.{key}"])


def settings_of(config: Mapping[str, Any], name: str, vocabulary: int, queries: int) -> Settings:
    """Return the metadata of the architecture ``name`` that a config describes.

    Args:
        vocabulary, queries: rows of the embedding, and of q in the first layer.
    Raises:
        ValueError: the config lacks what GGUF needs, or says what llama.cpp does not compute.
    """
    heads = _count(config, "num_attention_heads")
    head_dim = config.get("head_dim") or queries // heads
    level = {
        **config, "head_dim": head_dim, "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "vocab_size": vocabulary,
    }  # fmt: skip
    rope = _Rope(level, name)
    level |= {"rope_theta": rope.theta, "rope_local_base_freq": rope.local}
    for complaint in (*_not_computed(level, name, head_dim), *rope.not_computed()):
        raise ValueError(complaint)
    values: dict[str, int | float | str] = {"general.architecture": name, f"{name}.rope.dimension_count": head_dim}
    for key, own in COUNTS.items():
        if level.get(own) is not None and key not in _not_for(name):
            values[f"{name}.{key}"] = _count(level, own)
    for key, own in NUMBERS.items():
        if isinstance(level.get(own), int | float):
            values[f"{name}.{key}"] = float(level[own])
    values[f"{name}.attention.value_length"] = head_dim
    experts = config.get("num_local_experts", config.get("num_experts"))
    if experts:
        values[f"{name}.expert_count"] = int(experts)
    values |= rope.values()
    missing = [key for key in NEEDED if f"{name}.{key}" not in values]
    if missing:
        raise ValueError(f"it does not say {', '.join({**COUNTS, **NUMBERS}[key] for key in missing)}")
    return Settings(values, rope.frequencies(head_dim), tuple(_lost(config, name)))


class _Rope:
    """The positions of a config, in the spellings of transformers 4 (rope_theta, rope_scaling) and 5."""

    def __init__(self, config: Mapping[str, Any], name: str):
        parameters = config.get("rope_parameters") or {}
        whole = parameters.get("full_attention", parameters)
        local = parameters.get("sliding_attention", {})
        scaling = config.get("rope_scaling") or {key: v for key, v in whole.items() if key != "rope_theta"}
        self.name, self.context = name, config.get("max_position_embeddings")
        usual = _THETA.get(config.get("model_type", ""), 10000.0)
        self.theta = float(config.get("rope_theta") or whole.get("rope_theta") or usual)
        self.local = local.get("rope_theta", config.get("rope_local_base_freq")) if name == "gemma3" else None
        self.kind = scaling.get("rope_type", scaling.get("type")) or "default"
        self.scaling = scaling
        self.partial = whole.get("partial_rotary_factor", config.get("partial_rotary_factor"))
        self.plain_locally = local.get("rope_type", "default") == "default"

    def not_computed(self) -> Iterator[str]:
        if self.kind not in ("default", "linear", "yarn", "llama3"):
            yield f"its positions are scaled by {self.kind!r:.50}, which is not converted"
        elif not self.plain_locally or self.partial not in (None, 1, 1.0):
            yield "its positions are scaled in part only, which is not converted"
        elif self.kind != "default" and not isinstance(self.scaling.get("factor"), int | float):
            yield "its rope_scaling has no factor"
        elif self.kind == "llama3" and self.name != "llama":
            yield f"positions of Llama 3 are not those of {self.name}"
        for key, neutral in _NEUTRAL.items():
            if self.kind == "yarn" and self.scaling.get(key) not in neutral:
                yield f"{key} of its rope_scaling is {self.scaling[key]!r:.50}, which GGUF has no key for"

    def values(self) -> dict[str, int | float | str]:
        if self.kind not in ("linear", "yarn"):
            return {}
        place = f"{self.name}.rope.scaling"
        found: dict[str, int | float | str] = {
            f"{place}.type": self.kind,
            f"{place}.factor": float(self.scaling["factor"]),
        }
        original = self.scaling.get("original_max_position_embeddings") or (
            self.context if self.kind == "yarn" else None
        )
        return found | ({f"{place}.original_context_length": int(original)} if original else {})

    def frequencies(self, head_dim: int) -> list[float]:
        if self.kind != "llama3":
            return []
        keys = ("factor", *LLAMA3)
        if not all(isinstance(self.scaling.get(key), int | float) for key in keys):
            raise ValueError(f"its rope_scaling lacks one of {', '.join(keys)}")
        return llama3_factors(self.theta, head_dim, self.scaling)


def _not_computed(config: Mapping[str, Any], name: str, head_dim: int) -> Iterator[str]:
    known = ARCHITECTURES[name]
    gemma = known.shifted
    activation = (
        config.get("hidden_activation", config.get("hidden_act")) if gemma else config.get("hidden_act", "silu")
    )
    if activation not in (_GELU if gemma else _ACTIVATIONS):
        yield f"its activation is {activation!r:.50}, but llama.cpp computes {name} with another one"
    for key, value in known.config.items():
        if key == "norm_topk_prob" and config.get(key, False) is not value:
            yield f"{key} is {config.get(key)}, but llama.cpp computes {name} with {value}"
    if config.get("use_sliding_window"):
        yield f"it has a sliding window, which llama.cpp does not compute for {name}"
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        yield "some of its layers have no experts, which llama.cpp does not load"
    if name in _EVERY:
        every, kinds = _EVERY[name], config.get("layer_types")
        expected = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(len(kinds or ()))]
        if (kinds and kinds != expected) or config.get("sliding_window_pattern", every) != every:
            yield f"its layers have another order of sliding windows than {name} in llama.cpp"
        large = config.get("num_hidden_layers") == LAYERS_OF_27B[name]
        scalar = _count(config, "hidden_size") // _count(config, "num_attention_heads") if large else head_dim
        if (said := config.get("query_pre_attn_scalar", 256)) != scalar:
            yield f"query_pre_attn_scalar is {said!r:.50}, but llama.cpp computes with {scalar}"
        for key in _SOFTCAPPING:
            capped = config.get(key, 50.0 if name == "gemma2" else None) is not None
            if capped != (name == "gemma2"):
                how = "without" if capped else "with"
                yield f"{key} is {config.get(key)!r:.50}, but llama.cpp computes {name} {how} it"
        if config.get("sliding_window") is None:
            yield "it does not say sliding_window"
        if name == "gemma3" and config.get("use_bidirectional_attention"):
            yield "its attention looks both ways, which llama.cpp does not compute"


def _not_for(name: str) -> tuple[str, ...]:
    return ("attention.sliding_window",) if name not in _EVERY else ()


def _lost(config: Mapping[str, Any], name: str) -> Iterator[str]:
    if name == "llama" and config.get("sliding_window"):
        window = config["sliding_window"]
        yield f"the sliding window of {window} tokens is not in the file: llama.cpp has none for {name}"


def _count(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or not 0 <= value < 1 << 31
        or (value == 0 and "head" in key)
    ):
        raise ValueError(f"{key} is {value!r:.50}, expected a count")
    return value
