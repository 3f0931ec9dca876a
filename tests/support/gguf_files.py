"""GGUF files as llama.cpp's converter writes them: its names, its order of rows, its norms."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

SIZE = {"hidden": 256, "inner": 512, "heads": 4, "kv_heads": 2, "layers": 1, "vocab": 64}
SHIFTED = ("gemma", "gemma2", "gemma3")

_PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "block_sparse_moe.gate": "ffn_gate_inp", "block_sparse_moe.experts.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.w2": "ffn_down_exps", "block_sparse_moe.experts.w3": "ffn_up_exps",
    "mlp.gate": "ffn_gate_inp", "mlp.experts.gate_proj": "ffn_gate_exps", "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.experts.up_proj": "ffn_up_exps", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp", "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
}  # fmt: skip
_GEMMA2 = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_EXPERT = re.compile(r"\.experts\.(\d+)\.")


def gguf_name(name: str, architecture: str) -> str:
    module, _, kind = name.rpartition(".")
    if module in _OUTSIDE:
        return f"{_OUTSIDE[module]}.{kind}"
    _, _, layer, part = module.split(".", 3)
    table = _PARTS | (_GEMMA2 if architecture in ("gemma2", "gemma3") else {})
    return f"blk.{layer}.{table[part]}.{kind}"


def stacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the experts of a layer into one tensor, under the name without their numbers."""
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(_EXPERT.sub(".experts.", name), []).append(tensor)
    return {name: torch.stack(found) if ".experts." in name else found[0] for name, found in groups.items()}


def make_experts(kind: str, hidden=256, inner=64, experts=3, seed=5) -> dict[str, Tensor]:
    """Tensors of the experts of layer 0, as Mixtral or Qwen has them."""
    make = torch.Generator().manual_seed(seed)
    names = ("w1", "w2", "w3") if kind == "mixtral" else ("gate_proj", "down_proj", "up_proj")
    block = "model.layers.0." + ("block_sparse_moe" if kind == "mixtral" else "mlp")
    shapes = ((inner, hidden), (hidden, inner), (inner, hidden))
    tensors = {f"{block}.gate.weight": torch.randn(experts, hidden, generator=make)}
    for i in range(experts):
        for name, shape in zip(names, shapes, strict=True):
            tensors[f"{block}.experts.{i}.{name}.weight"] = torch.randn(shape, generator=make)
    if kind == "qwen2moe":
        tensors[f"{block}.shared_expert_gate.weight"] = torch.randn(1, hidden, generator=make)
        for name, shape in zip(names, shapes, strict=True):
            tensors[f"{block}.shared_expert.{name}.weight"] = torch.randn(shape, generator=make)
    return tensors


def permuted(tensor: Tensor, heads: int) -> Tensor:
    """Reorder the rows as the converter does for Llama."""
    return (
        tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
    )


def write_gguf(
    path: Path,
    tensors: dict[str, Tensor],
    architecture="llama",
    kind="F32",
    size=SIZE,
    buffers=None,
    part_tensors=0,
    texts=None,
    **extra,
) -> dict:
    """Write a file, in parts of so many tensors; return the values (float32) that the package decodes, by the names
    of transformers. ``extra`` are counts of the architecture, ``texts`` its other texts.
    """
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=part_tensors)
    for key, value in (texts or {}).items():
        writer.add_string(f"{architecture}.{key}", value)
    writer.add_block_count(size["layers"])
    writer.add_embedding_length(size["hidden"])
    writer.add_feed_forward_length(size["inner"])
    writer.add_head_count(size["heads"])
    writer.add_head_count_kv(size["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_context_length(128)
    writer.add_token_list([f"t{i}" for i in range(size["vocab"])])
    writer.add_bos_token_id(1)
    for key, value in extra.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    wanted = {}
    for name, tensor in (buffers or {}).items():
        writer.add_tensor(name, tensor.numpy())
    for name, tensor in stacked(tensors).items():
        values = tensor.float()
        if "shared_expert_gate" in name:
            values = values[0]
        vector = values.dim() == 1
        if architecture in SHIFTED and name.endswith("norm.weight"):
            values = values + 1
        heads = size["heads"] if ".q_proj." in name else size["kv_heads"] if ".k_proj." in name else 0
        stored = permuted(values, heads) if architecture == "llama" and heads else values
        own = "F32" if vector else kind
        quantization = gguf.GGMLQuantizationType[own]
        data = gguf.quants.quantize(stored.contiguous().numpy(), quantization)
        writer.add_tensor(gguf_name(name, architecture), data, raw_dtype=quantization)
        back = torch.from_numpy(np.array(gguf.quants.dequantize(data, quantization))).reshape(stored.shape)
        if architecture == "llama" and heads:
            back = permuted_back(back, heads)
        if architecture in SHIFTED and name.endswith("norm.weight"):
            back = back - 1
        if ".experts." in name:
            wanted |= {name.replace(".experts.", f".experts.{i}."): one for i, one in enumerate(back)}
        else:
            wanted[name] = back.view(tensor.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return wanted


def permuted_back(tensor: Tensor, heads: int) -> Tensor:
    return (
        tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
    )


def read(path):
    """What the package's reader finds: bytes, type and shape (row-major) by name, and the fields."""
    reader = gguf.GGUFReader(path)
    found = {t.name: (t.data, t.tensor_type, tuple(int(n) for n in t.shape[::-1])) for t in reader.tensors}
    return found, {name: field.contents() for name, field in reader.fields.items()}
