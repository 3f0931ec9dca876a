"""Tiny models of every family that is converted to GGUF."""

from __future__ import annotations

import torch
from gguf_files import make_experts
from safetensors.torch import save_file
from tiny_models import make_tensors, save_model

SIZE = {"hidden": 64, "inner": 160, "heads": 4, "kv_heads": 2, "layers": 2, "vocab": 96}
NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
# model_type: architecture, further tensors and settings.
GELU = {"hidden_activation": "gelu_pytorch_tanh", "head_dim": 16}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
MODELS = {
    "llama": ("llama", "", {}),
    "mistral": ("llama", "", {"head_dim": None, "sliding_window": 4096}),
    "qwen2": ("qwen2", "biases", {"use_sliding_window": False}),
    "qwen3": ("qwen3", "head norms", {"head_dim": 16}),
    "mixtral": ("llama", "mixtral", {"num_local_experts": 3, "num_experts_per_tok": 2, "intermediate_size": 64}),
    "qwen2_moe": ("qwen2moe", "qwen2moe biases", {
        **EXPERTS, "norm_topk_prob": False, "shared_expert_intermediate_size": 64}),
    "qwen3_moe": ("qwen3moe", "qwen3moe head norms", {**EXPERTS, "norm_topk_prob": True, "head_dim": 16}),
    "gemma": ("gemma", "tied", {"hidden_activation": None, "hidden_act": "gelu", "head_dim": 16}),
    "gemma2": ("gemma2", "tied, more norms", {
        **GELU, "sliding_window": 32, "attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 16}),
    "gemma3_text": ("gemma3", "tied, more norms, head norms", {
        **GELU, "sliding_window": 32, "rope_local_base_freq": 10000.0, "query_pre_attn_scalar": 16,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
}  # fmt: skip


def write_model(folder, kind="llama", **config):
    """Write a model of two layers in bfloat16; return its tensors."""
    _, extra, settings = MODELS[kind]
    tensors = make_tensors(1, tied="tied" in extra, **SIZE)
    save_model(folder, tensors, **{"model_type": kind, **settings, **config})
    make = torch.Generator().manual_seed(2)
    for i in range(SIZE["layers"]):
        block = f"model.layers.{i}."
        if "biases" in extra:
            for part, rows in (("q", 64), ("k", 32), ("v", 32)):
                tensors[f"{block}self_attn.{part}_proj.bias"] = torch.randn(rows, generator=make).bfloat16()
        if "more norms" in extra:
            tensors |= {f"{block}{part}.weight": torch.rand(64, generator=make).bfloat16() for part in NORMS}
        if "head norms" in extra:
            for part in ("q_norm", "k_norm"):
                tensors[f"{block}self_attn.{part}.weight"] = torch.rand(16, generator=make).bfloat16()
        if (experts := extra.partition(" ")[0]) in ("mixtral", "qwen2moe", "qwen3moe"):
            tensors = {name: t for name, t in tensors.items() if not name.startswith(f"{block}mlp.")}
            made = make_experts(experts, hidden=64, inner=64, seed=i)
            tensors |= {name.replace(".0.", f".{i}.", 1): t.bfloat16() for name, t in made.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors
