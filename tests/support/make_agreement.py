"""Writes ``tests/data/agreement.json``: configs and shapes of tiny models as transformers saves them, by family.

Run it with transformers installed: ``python tests/support/make_agreement.py``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parents[1] / "data" / "agreement.json"

TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 56, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "max_position_embeddings": 40,
}  # fmt: skip
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
HALVES = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 80,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 56, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1, "max_position_embeddings": 40, "max_source_positions": 36,
    "max_target_positions": 44,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 20, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
    "n_routed_experts": 4, "n_shared_experts": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1,
    "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "num_key_value_heads": 4,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip

DENSE = (
    "Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3Text:Gemma3", "Cohere", "Cohere2", "Granite",
    "Helium", "Olmo", "Olmo2", "Olmo3", "SeedOss", "SmolLM3", "StableLm", "Phi3", "Glm", "Glm4", "Starcoder2",
    "Nemotron", "Exaone4", "Ernie4_5", "Phi", "Apertus", "Arcee",
)  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "MixtralForCausalLM": TEXT | {"num_local_experts": 6},
    "Qwen2MoeForCausalLM": TEXT | EXPERTS | {"shared_expert_intermediate_size": 40, "mlp_only_layers": [0]},
    "Qwen3MoeForCausalLM": TEXT | EXPERTS | {"mlp_only_layers": [0], "head_dim": 8},
    "OlmoeForCausalLM": TEXT | {"num_experts": 6, "num_experts_per_tok": 2},
    "DeepseekV2ForCausalLM": TEXT | LATENT,
    "DeepseekV3ForCausalLM": TEXT | LATENT,
    "GptOssForCausalLM": TEXT | {"num_local_experts": 6, "head_dim": 12},
    "FalconForCausalLM": TEXT | {"new_decoder_architecture": False, "multi_query": True},
    "GPTNeoXForCausalLM": TEXT,
    "GPT2LMHeadModel": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "vocab_size": 56, "n_positions": 40},
    "GPTBigCodeForCausalLM": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "vocab_size": 56,
                              "n_positions": 40},
    "BertForMaskedLM": TEXT | {"type_vocab_size": 3},
    "RobertaForMaskedLM": TEXT | {"type_vocab_size": 3},
    "XLMRobertaForMaskedLM": TEXT | {"type_vocab_size": 3},
    "ElectraForMaskedLM": TEXT | {"type_vocab_size": 3, "embedding_size": 16},
    "DistilBertForMaskedLM": {"dim": 32, "hidden_dim": 48, "n_heads": 4, "n_layers": 2, "vocab_size": 56,
                              "max_position_embeddings": 40},
    "ModernBertForMaskedLM": TEXT,
    "T5ForConditionalGeneration": {"d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_heads": 4,
                                   "vocab_size": 56, "decoder_start_token_id": 0},
    "MT5ForConditionalGeneration": {"d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_heads": 4,
                                    "vocab_size": 56, "decoder_start_token_id": 0},
    "BartForConditionalGeneration": HALVES,
    "MBartForConditionalGeneration": HALVES,
    "WhisperForConditionalGeneration": HALVES | {"num_mel_bins": 16},
    "ViTForImageClassification": VISION,
    "OPTForCausalLM": {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                       "vocab_size": 56, "max_position_embeddings": 40, "word_embed_proj_dim": 32},
    "BloomForCausalLM": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 56},
    "Gemma3ForConditionalGeneration": {"text_config": TEXT | {"head_dim": 8, "sliding_window": 8},
                                       "vision_config": VISION},
    "Qwen2VLForConditionalGeneration": {
        "text_config": TEXT | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 14}},
    "LlavaForConditionalGeneration": {"text_config": {"model_type": "llama", **TEXT},
                                      "vision_config": {"model_type": "clip_vision_model", **VISION}},
}  # fmt: skip


def models() -> dict[str, dict[str, Any]]:
    own = dict(MODELS)
    for name in DENSE:
        config, _, model = name.partition(":")
        own[f"{model or config}ForCausalLM"] = dict(TEXT)
    return own


def shapes_of(name: str, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """Return the config and the shapes of a tiny model as ``save_pretrained`` writes them."""
    import transformers
    from safetensors import safe_open

    cls = getattr(transformers, name)
    with tempfile.TemporaryDirectory() as folder:
        cls(cls.config_class(**settings)).save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        config = json.loads((Path(folder) / "config.json").read_text())
    return config, shapes


def main() -> None:
    import transformers

    found: dict[str, Any] = {"transformers": transformers.__version__}
    for name, settings in sorted(models().items()):
        config, shapes = shapes_of(name, settings)
        plain = {k: v for k, v in config.items() if isinstance(v, int | str) or k in ("text_config", "head_dim")}
        found[name] = {"config": plain, "shapes": shapes}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in found.items())
    TARGET.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
