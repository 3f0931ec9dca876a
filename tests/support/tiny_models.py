"""Tiny Llama-shaped checkpoints in the Hugging Face layout, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def llama_shapes(layers=2, hidden=64, inner=160, heads=4, kv_heads=2, vocab=256, tied=False) -> dict[str, tuple]:
    """Return the tensor shapes of a Llama of that size, in file order."""
    kv = hidden // heads * kv_heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(layers):
        prefix = f"model.layers.{i}."
        shapes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "mlp.down_proj.weight": (hidden, inner),
            prefix + "mlp.gate_proj.weight": (inner, hidden),
            prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "self_attn.k_proj.weight": (kv, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, hidden),
            prefix + "self_attn.q_proj.weight": (hidden, hidden),
            prefix + "self_attn.v_proj.weight": (kv, hidden),
        }
    shapes["model.norm.weight"] = (hidden,)
    if not tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def make_tensors(seed=0, base=None, noise=2e-3, dtype=torch.bfloat16, **size) -> dict[str, torch.Tensor]:
    """Return random tensors of a tiny Llama, or ``base`` plus noise."""
    generator = torch.Generator().manual_seed(seed)
    if base is not None:
        return {
            name: (t.float() + noise * torch.randn(t.shape, generator=generator)).to(dtype) for name, t in base.items()
        }
    tensors = {}
    for name, shape in llama_shapes(**size).items():
        values = 0.02 * torch.randn(shape, generator=generator)
        tensors[name] = (1 + values if name.endswith("norm.weight") else values).to(dtype)
    return tensors


def save_model(folder, tensors, shards=1, heads=4, kv_heads=2, **config) -> Path:
    """Write a checkpoint folder: config.json, safetensors file(s) with index, a stub tokenizer. Returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    vocab, hidden = tensors["model.embed_tokens.weight"].shape
    layers = 1 + max(int(n.split(".")[2]) for n in tensors if n.startswith("model.layers."))
    written = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": tensors["model.layers.0.mlp.up_proj.weight"].shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "torch_dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
        **config,
    }
    (folder / "config.json").write_text(json.dumps(written, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    names = list(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for i in range(shards):
        part = {name: tensors[name] for name in names[i::shards]}
        filename = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / filename, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, filename)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def save_family(folder, shards=1) -> Path:
    """Write the checkpoints base, one, two and three (fine-tunes of it) into ``folder`` and return it."""
    base = make_tensors(seed=0)
    save_model(folder / "base", base)
    for seed, name in enumerate(("one", "two", "three"), start=1):
        save_model(folder / name, make_tensors(seed=seed, base=base), shards=shards)
    return folder
