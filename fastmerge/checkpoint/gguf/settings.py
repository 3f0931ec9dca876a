"""The metadata of a GGUF file as a ``config.json``."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

from .architectures import ARCHITECTURES
from .header import GgufTensor

# Members of a config by the key behind the architecture's name.
COUNTS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "context_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
NUMBERS = {
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
TOKENS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
NEEDED = (
    "block_count", "embedding_length", "feed_forward_length", "attention.head_count", "context_length",
    "attention.layer_norm_rms_epsilon",
)  # fmt: skip
# What must be the same in a config beside the file.
_SAME = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")
# Layers of the models whose attention is scaled by the width of the model per head, as llama.cpp has them by heart.
LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
FREQUENCIES = "rope_freqs.weight"
"""The tensor that a file has for positions of Llama 3: what their frequencies are divided by, [head_dim / 2]."""
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def config_of(metadata: Mapping[str, Any], stored: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """Return the ``config.json`` that the metadata and the tensors of a known architecture describe.

    Raises:
        ValueError: a key is missing or of another type, or says what no config of transformers can.
    """
    name = metadata["general.architecture"]
    known = ARCHITECTURES[name]
    config: dict[str, Any] = {"architectures": [known.causal], "model_type": known.model_type, **known.config}
    said: dict[str, float | None] = {own: count_of(metadata, f"{name}.{key}") for key, own in COUNTS.items()}
    said |= {own: _number(metadata, f"{name}.{key}") for key, own in NUMBERS.items()}
    config |= {own: value for own, value in said.items() if value is not None}
    missing = [key for key in NEEDED if {**COUNTS, **NUMBERS}[key] not in config]
    if missing:
        raise ValueError(f"its metadata have no {', '.join(f'{name}.{key}' for key in missing)}")
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config.setdefault("rope_theta", 10000.0)
    config["head_dim"] = _head_dim(config, metadata, stored)
    if scaling := _scaling(name, metadata):
        config["rope_scaling"] = scaling
    if experts := count_of(metadata, f"{name}.expert_count"):
        config |= _experts(name, experts, config, stored)
    if "blk.0.attn_q.bias" in stored and known.model_type in ("llama", "qwen3", "qwen3_moe"):
        if "blk.0.attn_output.bias" not in stored:
            raise ValueError(f"it has a bias of q and none of the output, which no {known.model_type} has")
        config["attention_bias"] = True
    if "blk.0.ffn_up.bias" in stored:
        config["mlp_bias"] = True
    if name in LAYERS_OF_27B:
        large = config["num_hidden_layers"] == LAYERS_OF_27B[name]
        per_head = config["hidden_size"] // config["num_attention_heads"]
        config["query_pre_attn_scalar"] = per_head if large else config["head_dim"]
    embedding = stored.get("token_embd.weight")
    if embedding is not None and len(embedding.shape) == 2:
        config["vocab_size"] = embedding.shape[0]
    for key, own in TOKENS.items():
        token = metadata.get(f"tokenizer.ggml.{key}")
        if isinstance(token, int):
            config[own] = token
    return {**config, "tie_word_embeddings": "output.weight" not in stored}


def check_same(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Raise ValueError where a config that lies beside a file is that of another model."""
    name = metadata["general.architecture"]
    level = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else config
    for key, own in COUNTS.items():
        said = count_of(metadata, f"{name}.{key}") if own in _SAME else None
        if said is not None and isinstance(level, Mapping) and level.get(own, said) != said:
            raise ValueError(f"{own} is {level.get(own)!r:.50}, but {name}.{key} of the file is {said}")


def llama3_factors(theta: float, head_dim: int, scaling: Mapping[str, Any]) -> list[float]:
    """Return what the frequencies of Llama 3.1 and later are divided by: the values of ``FREQUENCIES``."""
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]
    found = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        smooth = min(1.0, max(0.0, (context / wavelength - low) / (high - low)))
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found


def scaling_of_llama3(factors: list[float], config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the ``rope_scaling`` that the values of ``FREQUENCIES`` were made from; None where nothing is scaled.

    Raises:
        ValueError: the factors are not those of Llama 3.1 and its successors.
    """
    if all(factor == 1 for factor in factors):
        return None
    factor = _short(factors[-1]) if factors else 0.0
    scaling: dict[str, Any] = {"rope_type": "llama3", "factor": factor, **LLAMA3}
    if factor > 0 and 2 * len(factors) == config["head_dim"]:
        expected = llama3_factors(config["rope_theta"], config["head_dim"], scaling)
        if all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(factors, expected, strict=True)):
            return scaling
    raise ValueError(f"{FREQUENCIES} is not that of Llama 3.1 and its successors")


def count_of(metadata: Mapping[str, Any], key: str) -> int | None:
    """Return a count that the metadata hold, None where they do not; ValueError for what is none."""
    value = metadata.get(key)
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        value = value[0]
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31):
        raise ValueError(f"{key} is {value!r:.50}, expected one number for all layers")
    return value


def _number(metadata: Mapping[str, Any], key: str) -> float | None:
    value = metadata.get(key)
    if value is not None and (not isinstance(value, int | float) or not math.isfinite(value)):
        raise ValueError(f"{key} is {value!r:.50}, expected a number")
    return None if value is None else _short(float(value))


def _short(value: float) -> float:
    """Return the shortest decimal number that is the same in float32, in which GGUF keeps 1e-5 as 9.99999974e-06."""
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<d", short) == struct.pack("<d", value) or _float32(short) == _float32(value):
            return short
    return value


def _float32(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<d", value)


def _head_dim(config: Mapping[str, Any], metadata: Mapping[str, Any], stored: Mapping[str, GgufTensor]) -> int:
    name, heads = metadata["general.architecture"], config["num_attention_heads"]
    query = stored.get("blk.0.attn_q.weight")
    rows = query.shape[0] if query is not None and query.shape else config.get("head_dim", 0) * heads
    if not heads or not rows or rows % heads:
        raise ValueError(f"{rows} rows of q are not divided by {heads} heads")
    said = config.get("head_dim", rows // heads)
    rotary = count_of(metadata, f"{name}.rope.dimension_count")
    if said != rows // heads or rotary not in (None, said):
        raise ValueError(f"a head has {rows // heads} rows, but the metadata say {said}, of which {rotary} rotate")
    return said


def _scaling(name: str, metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = metadata.get(f"{name}.rope.scaling.type")
    factor = _number(metadata, f"{name}.rope.scaling.factor")
    if kind in (None, "none"):
        if factor not in (None, 1.0):
            raise ValueError(f"{name}.rope.scaling.factor is {factor} without a type")
        return None
    if kind not in ("linear", "yarn") or factor is None:
        raise ValueError(f"{name}.rope.scaling is {kind!r:.50} with the factor {factor}, which is not read")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if (context := count_of(metadata, f"{name}.rope.scaling.original_context_length")) is not None:
        scaling["original_max_position_embeddings"] = context
    return scaling


def _experts(name: str, experts: int, config: Mapping[str, Any], stored: Mapping[str, GgufTensor]) -> dict[str, Any]:
    if "num_experts_per_tok" not in config:
        raise ValueError(f"its metadata have no {name}.expert_used_count")
    if name == "llama":
        return {
            "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": experts,
            "sliding_window": None,
        }  # fmt: skip
    found: dict[str, Any] = {"num_experts": experts, "decoder_sparse_step": 1}
    for part, own in (("ffn_up_exps", "moe_intermediate_size"), ("ffn_up_shexp", "shared_expert_intermediate_size")):
        tensor = next((t for key, t in stored.items() if key.endswith(f".{part}.weight")), None)
        if tensor is not None and len(tensor.shape) >= 2:
            found[own] = tensor.shape[-2]
    layers = range(config["num_hidden_layers"])
    found["mlp_only_layers"] = [i for i in layers if f"blk.{i}.ffn_gate.weight" in stored]
    return found
