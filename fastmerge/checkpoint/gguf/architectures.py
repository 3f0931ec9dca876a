"""Architectures of GGUF files: names of tensors in transformers, and what llama.cpp's converter changes.

llama.cpp reorders the rows of q and k of Llama-like models (rotary pairs side by side), and adds 1 to the norms of
Gemma. Experts are stacked there and apart in transformers' files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
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
_NAME = re.compile(r"(?:blk\.(0|[1-9]\d{0,5})\.)?(\w+)\.(weight|bias)", re.ASCII)
_LAYER_NAME = re.compile(r"model\.layers\.(0|[1-9]\d{0,5})\.(.+)", re.ASCII)
_EXPERT = re.compile(r"\.experts\.(0|[1-9]\d{0,5})\.", re.ASCII)


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        model_type, causal: what transformers calls it; ``mixtral`` is another name of a llama with experts.
        layer:    names within a layer, beside those that all have.
        permuted: the rows of q and k are reordered.
        shifted:  1 is added to the norms.
        config:   members of the config that llama.cpp has as constants.
    """

    model_type: str
    causal: str
    layer: Mapping[str, str] = field(default_factory=dict)
    permuted: bool = False
    shifted: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)

    def name_of(self, name: str) -> str | None:
        """Return the name in transformers of a GGUF tensor, with ``{}`` for the expert; None for an unknown one."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        layer, part, kind = match.groups()
        if layer is None:
            return f"{_COMMON[part]}.{kind}" if part in _COMMON else None
        own = self._parts.get(part)
        return None if own is None else f"model.layers.{layer}.{own}.{kind}"

    def gguf_name(self, name: str) -> tuple[str, int | None] | None:
        """Return the name in GGUF of a tensor of transformers, and its expert; None for an unknown one."""
        module, _, kind = name.rpartition(".")
        if kind not in ("weight", "bias"):
            return None
        for part, own in _COMMON.items():
            if module == own:
                return f"{part}.{kind}", None
        match = _LAYER_NAME.fullmatch(module)
        if match is None:
            return None
        layer, inner = match.groups()
        expert = _EXPERT.search(inner)
        found = self._modules.get(_EXPERT.sub(".experts.{}.", inner))
        return None if found is None else (f"blk.{layer}.{found}.{kind}", int(expert[1]) if expert else None)

    def is_shifted(self, name: str) -> bool:
        """True for a GGUF tensor to which 1 is added."""
        return self.shifted and name.endswith("norm.weight")

    def heads_key(self, name: str) -> str | None:
        """Return the key of the number of heads of a GGUF tensor whose rows are reordered; None for others."""
        part = name.rpartition(".")[0].rpartition(".")[2]
        return _PERMUTED.get(part) if self.permuted else None

    @cached_property
    def _parts(self) -> dict[str, str]:
        return {**_LAYER, **self.layer}

    @cached_property
    def _modules(self) -> dict[str, str]:
        return {own: part for part, own in self._parts.items()}


_PERMUTED = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
_GELU = {"hidden_activation": "gelu_pytorch_tanh"}

ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", _MIXTRAL, permuted=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM"),
    "qwen2moe": Architecture("qwen2_moe", "Qwen2MoeForCausalLM", _QWEN_EXPERTS, config={"norm_topk_prob": False}),
    "qwen3moe": Architecture("qwen3_moe", "Qwen3MoeForCausalLM", _QWEN_EXPERTS, config={"norm_topk_prob": True}),
    "gemma": Architecture("gemma", "GemmaForCausalLM", shifted=True, config=_GELU),
    "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", _GEMMA2, shifted=True, config=_GELU),
    "gemma3": Architecture("gemma3_text", "Gemma3ForCausalLM", _GEMMA2, shifted=True, config=_GELU),
}
"""By ``general.architecture``."""
