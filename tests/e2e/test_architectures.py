"""Models of many kinds, as transformers saves them: merged whole and cut into slices, they load without a gap."""

from __future__ import annotations

import pytest
import torch

import fastmerge

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
HALVES = {
    "d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
NO_COUNT = {key: value for key, value in TEXT.items() if key != "num_hidden_layers"}

# Class of the model, class of its config, and settings.
KINDS = {
    "llava": ("LlavaForConditionalGeneration", "LlavaConfig",
              {"text_config": {"model_type": "llama", **TEXT},
               "vision_config": {"model_type": "clip_vision_model", **VISION}}),
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", "Qwen2VLConfig",
                 {"text_config": TEXT | MROPE,
                  "vision_config": {"depth": 6, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 14}}),
    "gemma3": ("Gemma3ForConditionalGeneration", "Gemma3Config",
               {"text_config": TEXT | {"head_dim": 8, "sliding_window": 8}, "vision_config": VISION}),
    "qwen2_audio": ("Qwen2AudioForConditionalGeneration", "Qwen2AudioConfig",
                    {"text_config": {"model_type": "qwen2", **TEXT},
                     "audio_config": {"d_model": 32, "encoder_layers": 6, "encoder_ffn_dim": 64,
                                      "encoder_attention_heads": 4, "num_mel_bins": 16, "max_source_positions": 16}}),
    "qwen2_moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig",
                  TEXT | EXPERTS | {"shared_expert_intermediate_size": 16, "mlp_only_layers": [0, 3]}),
    "jamba": ("JambaForCausalLM", "JambaConfig",
              TEXT | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 4,
                      "mamba_dt_rank": 4, "use_mamba_kernels": False}),
    "nemotron_h": ("NemotronHForCausalLM", "NemotronHConfig",
                   NO_COUNT | {"layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"], "head_dim": 8,
                               "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 2}),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", TEXT | {"no_rope_layers": [1, 1, 1, 0]}),
    "bart": ("BartForConditionalGeneration", "BartConfig", HALVES),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", HALVES),
    "albert": ("AlbertForMaskedLM", "AlbertConfig", NO_COUNT | {"num_hidden_layers": 4, "embedding_size": 16}),
}  # fmt: skip
WHOLE_ONLY = ("bart", "whisper", "albert")


@pytest.fixture
def models(request, tmp_path, monkeypatch):
    """The class of the models ``a`` and ``b``, which are saved in the current folder."""
    monkeypatch.chdir(tmp_path)
    cls, config, settings = KINDS[request.param]
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        getattr(transformers, cls)(getattr(transformers, config)(**settings)).save_pretrained(name)
    return getattr(transformers, cls)


def load(cls, folder):
    """Load a model and check that the checkpoint holds exactly its tensors."""
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(info.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model


@pytest.mark.parametrize("models", KINDS, indirect=True)
def test_the_average(models):
    recipe = {"merge_method": "linear", "models": ["a", "b"], "parameters": {"weight": 0.5}}
    fastmerge.merge(recipe, "out")
    one, two, merged = (load(models, folder).state_dict() for folder in ("a", "b", "out"))
    for name, tensor in merged.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, 0.5 * one[name] + 0.5 * two[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("models", [kind for kind in KINDS if kind not in WHOLE_ONLY], indirect=True)
def test_slices(models):
    """Layers 2 3 0 1: what the config says of each layer follows it."""
    ranges = [[2, 4], [0, 2]]
    slices = [{"sources": [{"model": "a", "layer_range": layers}]} for layers in ranges]
    fastmerge.merge({"merge_method": "passthrough", "slices": slices}, "out")
    before, after = load(models, "a"), load(models, "out")
    one, two = (
        next(m.layers for m in model.modules() if len(getattr(m, "layers", ())) == 4) for model in (before, after)
    )
    for place, source in enumerate((2, 3, 0, 1)):
        assert repr(two[place]) == repr(one[source])
        own = two[place].state_dict()
        assert all(torch.equal(own[name], tensor) for name, tensor in one[source].state_dict().items())
