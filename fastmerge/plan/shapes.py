"""The shapes of tensors by the sizes in a config, of families that are known by heart.

One line per kind of tensor: the end of its name, with ``N`` for numbers, and its shape in keys of the config. What
depends on more than sizes (fused projections of Falcon, padding of positions) is left out, as are other families.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

Shape = tuple[str, ...]

_TOKENS = """
embed_tokens.weight: vocab_size, hidden_size
lm_head.weight: vocab_size, hidden_size
"""
_ATTENTION = """
q_proj.weight: num_attention_heads * head_dim, hidden_size
k_proj.weight: num_key_value_heads * head_dim, hidden_size
v_proj.weight: num_key_value_heads * head_dim, hidden_size
o_proj.weight: hidden_size, num_attention_heads * head_dim
input_layernorm.weight: hidden_size
model.norm.weight: hidden_size
"""
_MLP = """
gate_proj.weight: intermediate_size, hidden_size
up_proj.weight: intermediate_size, hidden_size
down_proj.weight: hidden_size, intermediate_size
"""
_FUSED_MLP = """
gate_up_proj.weight: 2 * intermediate_size, hidden_size
down_proj.weight: hidden_size, intermediate_size
"""
_EXPERTS = """
experts.N.gate_proj.weight: %s, hidden_size
experts.N.up_proj.weight: %s, hidden_size
experts.N.down_proj.weight: hidden_size, %s
"""
_DECODER = _TOKENS + _ATTENTION + _MLP
_SPARSE = _DECODER + _EXPERTS.replace("%s", "moe_intermediate_size") + "mlp.gate.weight: num_experts, hidden_size\n"
_LATENT = (
    _TOKENS + _MLP + _EXPERTS.replace("%s", "moe_intermediate_size") + """
q_a_proj.weight: q_lora_rank, hidden_size
q_b_proj.weight: num_attention_heads * qk_nope_head_dim + num_attention_heads * qk_rope_head_dim, q_lora_rank
q_proj.weight: num_attention_heads * qk_nope_head_dim + num_attention_heads * qk_rope_head_dim, hidden_size
kv_a_proj_with_mqa.weight: kv_lora_rank + qk_rope_head_dim, hidden_size
kv_b_proj.weight: num_attention_heads * qk_nope_head_dim + num_attention_heads * v_head_dim, kv_lora_rank
o_proj.weight: hidden_size, num_attention_heads * v_head_dim
mlp.gate.weight: n_routed_experts, hidden_size
shared_experts.gate_proj.weight: n_shared_experts * moe_intermediate_size, hidden_size
shared_experts.up_proj.weight: n_shared_experts * moe_intermediate_size, hidden_size
shared_experts.down_proj.weight: hidden_size, n_shared_experts * moe_intermediate_size
"""
)  # fmt: skip
_ENCODER = """
attention.self.query.weight: hidden_size, hidden_size
attention.self.key.weight: hidden_size, hidden_size
attention.self.value.weight: hidden_size, hidden_size
attention.output.dense.weight: hidden_size, hidden_size
intermediate.dense.weight: intermediate_size, hidden_size
output.dense.weight: hidden_size, intermediate_size
"""
_BERT = _ENCODER + """
word_embeddings.weight: vocab_size, %s
position_embeddings.weight: max_position_embeddings, %s
token_type_embeddings.weight: type_vocab_size, %s
"""  # fmt: skip
_HALVES = """
embed_tokens.weight: vocab_size, d_model
shared.weight: vocab_size, d_model
lm_head.weight: vocab_size, d_model
self_attn.q_proj.weight: d_model, d_model
self_attn.v_proj.weight: d_model, d_model
encoder.layers.N.fc1.weight: encoder_ffn_dim, d_model
encoder.layers.N.fc2.weight: d_model, encoder_ffn_dim
decoder.layers.N.fc1.weight: decoder_ffn_dim, d_model
decoder.layers.N.fc2.weight: d_model, decoder_ffn_dim
"""
_T5 = """
shared.weight: vocab_size, d_model
lm_head.weight: vocab_size, d_model
q.weight: num_heads * d_kv, d_model
k.weight: num_heads * d_kv, d_model
v.weight: num_heads * d_kv, d_model
o.weight: d_model, num_heads * d_kv
wi.weight: d_ff, d_model
wi_0.weight: d_ff, d_model
wi_1.weight: d_ff, d_model
wo.weight: d_model, d_ff
"""
_GPT2 = """
wte.weight: vocab_size, n_embd
wpe.weight: n_positions, n_embd
attn.c_proj.weight: n_embd, n_embd
"""

_DENSE = (
    "apertus arcee cohere cohere2 ernie4_5 exaone4 gemma gemma2 gemma3_text granite llama mistral nemotron olmo "
    "olmo2 olmo3 qwen2 qwen2_vl_text qwen2_5_vl_text qwen3 qwen3_vl_text seed_oss smollm3 stablelm"
)
_FAMILIES: dict[str, str] = {
    **dict.fromkeys(_DENSE.split(), _DECODER),
    "helium": _DECODER + "o_proj.weight: hidden_size, hidden_size\n",
    "glm": _TOKENS + _ATTENTION + _FUSED_MLP,
    "glm4": _TOKENS + _ATTENTION + _FUSED_MLP,
    "phi3": _TOKENS + _ATTENTION + _FUSED_MLP + "qkv_proj.weight: num_attention_heads * head_dim + "
            "2 * num_key_value_heads * head_dim, hidden_size\n",
    "phi": _TOKENS + _ATTENTION + "self_attn.dense.weight: hidden_size, num_attention_heads * head_dim\n"
           "fc1.weight: intermediate_size, hidden_size\nfc2.weight: hidden_size, intermediate_size\n",
    "starcoder2": _TOKENS + _ATTENTION + "c_fc.weight: intermediate_size, hidden_size\n"
                  "c_proj.weight: hidden_size, intermediate_size\n",
    "mixtral": _TOKENS + _ATTENTION + "block_sparse_moe.gate.weight: num_local_experts, hidden_size\n"
               "experts.N.w1.weight: intermediate_size, hidden_size\nexperts.N.w2.weight: hidden_size, "
               "intermediate_size\nexperts.N.w3.weight: intermediate_size, hidden_size\n",
    "qwen2_moe": _SPARSE + "shared_expert.gate_proj.weight: shared_expert_intermediate_size, hidden_size\n"
                 "shared_expert.up_proj.weight: shared_expert_intermediate_size, hidden_size\n"
                 "shared_expert.down_proj.weight: hidden_size, shared_expert_intermediate_size\n",
    "qwen3_moe": _SPARSE,
    "olmoe": _TOKENS + _ATTENTION + _EXPERTS.replace("%s", "intermediate_size")
             + "mlp.gate.weight: num_experts, hidden_size\n",
    "gpt_oss": _TOKENS + _ATTENTION + "router.weight: num_local_experts, hidden_size\n",
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "falcon": "word_embeddings.weight: vocab_size, hidden_size\nlm_head.weight: vocab_size, hidden_size\n"
              "self_attention.dense.weight: hidden_size, hidden_size\ndense_h_to_4h.weight: ffn_hidden_size, "
              "hidden_size\ndense_4h_to_h.weight: hidden_size, ffn_hidden_size\n",
    "gpt_neox": "embed_in.weight: vocab_size, hidden_size\nembed_out.weight: vocab_size, hidden_size\n"
                "query_key_value.weight: 3 * hidden_size, hidden_size\nattention.dense.weight: hidden_size, hidden_size"
                "\ndense_h_to_4h.weight: intermediate_size, hidden_size\n"
                "dense_4h_to_h.weight: hidden_size, intermediate_size\n",
    "bloom": "word_embeddings.weight: vocab_size, hidden_size\n"
             "query_key_value.weight: 3 * hidden_size, hidden_size\n"
             "dense_h_to_4h.weight: 4 * hidden_size, hidden_size\ndense_4h_to_h.weight: hidden_size, 4 * hidden_size\n",
    "gpt2": _GPT2 + "attn.c_attn.weight: n_embd, 3 * n_embd\nmlp.c_fc.weight: n_embd, n_inner\n"
            "mlp.c_proj.weight: n_inner, n_embd\n",
    "gpt_bigcode": _GPT2 + "mlp.c_fc.weight: n_inner, n_embd\nmlp.c_proj.weight: n_embd, n_inner\n",
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), _BERT.replace("%s", "hidden_size")),
    "electra": _BERT.replace("%s", "embedding_size"),
    "distilbert": "word_embeddings.weight: vocab_size, dim\nposition_embeddings.weight: max_position_embeddings, dim\n"
                  "q_lin.weight: dim, dim\nv_lin.weight: dim, dim\nlin1.weight: hidden_dim, dim\n"
                  "lin2.weight: dim, hidden_dim\n",
    "modernbert": "tok_embeddings.weight: vocab_size, hidden_size\nWqkv.weight: 3 * hidden_size, hidden_size\n"
                  "mlp.Wi.weight: 2 * intermediate_size, hidden_size\nmlp.Wo.weight: hidden_size, intermediate_size\n",
    "t5": _T5, "mt5": _T5,
    "bart": _HALVES, "mbart": _HALVES,
    "whisper": _HALVES + "encoder.embed_positions.weight: max_source_positions, d_model\n"
               "decoder.embed_positions.weight: max_target_positions, d_model\n"
               "conv1.weight: d_model, num_mel_bins, 3\n",
    "opt": "embed_tokens.weight: vocab_size, word_embed_proj_dim\nq_proj.weight: hidden_size, hidden_size\n"
           "v_proj.weight: hidden_size, hidden_size\nfc1.weight: ffn_dim, hidden_size\n"
           "fc2.weight: hidden_size, ffn_dim\n",
    "vit": _ENCODER.replace("attention.self.", "attention.attention.")
           + "projection.weight: hidden_size, num_channels, patch_size, patch_size\n",
}  # fmt: skip

STATED = {
    "ernie4_5", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt_oss", "helium", "qwen3", "qwen3_moe",
    "qwen3_vl_text", "seed_oss",
}  # fmt: skip
"""Families whose heads have a size of their own: hidden_size / num_attention_heads says nothing of it."""


@functools.cache
def shapes_of(model_type: str) -> Mapping[str, Shape]:
    """Return the shapes by the end of a tensor's name, the longest end first; empty for other families."""
    lines = [line.partition(": ") for line in _FAMILIES.get(model_type, "").splitlines() if line]
    return {name: tuple(shape.split(", ")) for name, _, shape in sorted(lines, key=lambda line: -len(line[0]))}
