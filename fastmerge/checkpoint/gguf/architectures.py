"""Architectures of GGUF files: names of tensors in transformers, what llama.cpp's converter changed, the config.

llama.cpp reorders the rows of q and k of Llama-like models (rotary pairs side by side), and adds 1 to the norms of
Gemma; both are undone. Experts are stacked there and apart in transformers' files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_COMMON = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
}
_QWEN_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
}
_GEMMA2 = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        model_type, causal: what transformers calls it.
        layer:    names within a layer, beside those that all have.
        permuted: the rows of q and k are reordered.
        shifted:  1 was added to the norms.
        config:   constant members of the config.
    """

    model_type: str
    causal: str
    layer: Mapping[str, str]
    permuted: bool = False
    shifted: bool = False
    config: Mapping[str, Any] | None = None

    def name_of(self, name: str) -> str | None:
        """Return the name in transformers of a GGUF tensor, with ``{}`` for the expert; None for an unknown one."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        layer, part, kind = match.groups()
        if layer is None:
            return f"{_COMMON[part]}.{kind}" if part in _COMMON else None
        own = {**_LAYER, **self.layer}.get(part)
        return None if own is None else f"model.layers.{layer}.{own}.{kind}"


_GELU = {"hidden_activation": "gelu_pytorch_tanh"}

ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", _MIXTRAL, permuted=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", {}),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", {}),
    "qwen2moe": Architecture("qwen2_moe", "Qwen2MoeForCausalLM", _QWEN_EXPERTS),
    "qwen3moe": Architecture("qwen3_moe", "Qwen3MoeForCausalLM", _QWEN_EXPERTS),
    "gemma": Architecture("gemma", "GemmaForCausalLM", {}, shifted=True, config=_GELU),
    "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", _GEMMA2, shifted=True, config=_GELU),
    "gemma3": Architecture("gemma3_text", "Gemma3ForCausalLM", _GEMMA2, shifted=True, config=_GELU),
}

# Members of a config by the key behind the architecture's name.
_CONFIG = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "context_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_TOKENS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}


def config_of(metadata: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    """Return the ``config.json`` that the metadata of a known architecture describes."""
    name = metadata["general.architecture"]
    known = ARCHITECTURES[name]
    config: dict[str, Any] = {"architectures": [known.causal], "model_type": known.model_type, **(known.config or {})}
    for key, own in _CONFIG.items():
        value = metadata.get(f"{name}.{key}")
        if value is not None:
            config[own] = round(value, 12) if isinstance(value, float) else value
    experts = metadata.get(f"{name}.expert_count")
    if experts:
        config["num_local_experts" if name == "llama" else "num_experts"] = experts
        if name == "llama":
            config |= {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        config.setdefault("vocab_size", len(tokens))
    for key, own in _TOKENS.items():
        if f"tokenizer.ggml.{key}" in metadata:
            config[own] = metadata[f"tokenizer.ggml.{key}"]
    return {**config, "tie_word_embeddings": tied, "torch_dtype": "bfloat16"}
