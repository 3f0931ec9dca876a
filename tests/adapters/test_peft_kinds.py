"""Adapters that are no plain LoRA, folded into their base: equal to PEFT's ``merge_and_unload``.

float32 bases: what is formed by single operations (IA3, LoKr of two matrices, trained tokens, biases) is equal to the
bit; sums have another order than a library's, which the bound allows for. bfloat16 bases: within one rounding of it.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import fastmerge
from fastmerge.errors import InvalidInput

peft = pytest.importorskip("peft", reason="needs PEFT: pip install peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 64, "tie_word_embeddings": False, "attention_bias": True}  # fmt: skip
MIXTRAL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
           "num_key_value_heads": 1, "vocab_size": 32, "num_local_experts": 3}  # fmt: skip
BOTH = ["q_proj", "up_proj"]
EXPERTS = {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}


def llama(**changes):
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA | changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64))


def mixtral(**changes):
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**MIXTRAL | changes))


def tuned(tmp_path, model, config):
    """Save a base and an adapter of it whose trained tensors are all changed; return PEFT's model."""
    torch.manual_seed(0)
    model.save_pretrained(tmp_path / "base")
    own = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in own.parameters():
            if parameter.requires_grad:
                parameter += (0.1 * torch.randn(parameter.shape)).to(parameter.dtype)
    own.save_pretrained(tmp_path / "adapter")
    return own


def recipe(tmp_path):
    return {"merge_method": "passthrough", "models": [{"model": f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"}]}


def fold(tmp_path, model, config):
    """Return what fastmerge folds and what PEFT folds, by the names on the disk."""
    tuned(tmp_path, model, config)
    base = type(model).from_pretrained(tmp_path / "base")
    own = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    own.merge_and_unload().save_pretrained(tmp_path / "theirs")
    fastmerge.merge(recipe(tmp_path), tmp_path / "out", ram="64MiB")
    return tuple(load_file(tmp_path / folder / "model.safetensors") for folder in ("out", "theirs"))


def check(folded, expected, base, *, exact=False):
    assert folded.keys() == expected.keys()
    changed = [name for name in folded if not torch.equal(folded[name], base[name])]
    assert changed
    for name, tensor in folded.items():
        bound = 0 if exact else 2e-6
        torch.testing.assert_close(tensor, expected[name], rtol=bound, atol=bound)
    return changed


def loaded(tmp_path):
    return load_file(tmp_path / "base" / "model.safetensors")


KINDS = {
    "lora bias": (peft.LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj"], lora_bias=True), False),
    "adalora": (peft.AdaLoraConfig(init_r=4, target_r=2, total_step=9, lora_alpha=7, target_modules=BOTH), False),
    "adalora, fewer ranks": (
        peft.AdaLoraConfig(init_r=3, target_r=2, total_step=9, target_modules=["q_proj"], rank_pattern={
            f"model.layers.{i}.self_attn.q_proj.lora_E": [True, i == 1, i == 1] for i in (0, 1)}), False),
    "loha": (peft.LoHaConfig(r=3, alpha=5, target_modules=BOTH, init_weights=False), False),
    "lokr": (peft.LoKrConfig(r=32, alpha=5, target_modules=BOTH, init_weights=False), True),
    "lokr of factors": (
        peft.LoKrConfig(r=2, alpha=5, target_modules=BOTH, init_weights=False, decompose_both=True), False),
    "ia3": (peft.IA3Config(target_modules=["q_proj", "k_proj", "down_proj"], feedforward_modules=["down_proj"]), True),
    "vera": (peft.VeraConfig(r=4, target_modules=BOTH), False),
    "oft": (peft.OFTConfig(r=0, oft_block_size=8, target_modules=BOTH, init_weights=False), False),
    "oft, inverse": (peft.OFTConfig(r=0, oft_block_size=8, target_modules=BOTH, use_cayley_neumann=False), False),
    "oft, short series": (
        peft.OFTConfig(r=0, oft_block_size=8, target_modules=BOTH, num_cayley_neumann_terms=3), False),
    "oft, shared and constrained": (
        peft.OFTConfig(r=0, oft_block_size=8, target_modules=BOTH, block_share=True, coft=True, eps=0.5), False),
    "boft": (peft.BOFTConfig(boft_block_size=4, target_modules=BOTH, init_weights=False), False),
    "layer norms": (peft.LNTuningConfig(task_type="CAUSAL_LM"), True),
    "tokens": (peft.TrainableTokensConfig(token_indices=[5, 1]), True),
    "tokens of lora": (
        peft.LoraConfig(r=2, target_modules=BOTH, trainable_token_indices={"embed_tokens": [1, 63], "lm_head": [2]}),
        False),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(tmp_path, kind):
    config, exact = KINDS[kind]
    changed = check(*fold(tmp_path, llama(), config), loaded(tmp_path), exact=exact)
    if kind == "ia3":
        assert "model.layers.0.self_attn.q_proj.bias" in changed


@pytest.mark.parametrize("kind", ["lora bias", "loha", "lokr", "ia3", "vera", "oft", "boft", "tokens of lora"])
def test_bfloat16(tmp_path, kind):
    """One rounding of a float32 sum: at most one unit of bfloat16 from PEFT, which rounds the same or twice."""
    folded, expected = fold(tmp_path, llama().bfloat16(), KINDS[kind][0])
    for name, tensor in folded.items():
        torch.testing.assert_close(tensor, expected[name], rtol=2**-7, atol=1e-6)
    equal = sum(int((tensor == expected[name]).sum()) for name, tensor in folded.items())
    assert equal > 0.999 * sum(map(torch.Tensor.numel, folded.values()))


@pytest.mark.parametrize("kind", ["ia3", "vera", "adalora"])
def test_transposed_weights(tmp_path, kind):
    config = {
        "ia3": peft.IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"],
                              fan_in_fan_out=True),
        "vera": peft.VeraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
        "adalora": peft.AdaLoraConfig(init_r=4, total_step=9, target_modules=["c_attn"], fan_in_fan_out=True),
    }[kind]  # fmt: skip
    check(*fold(tmp_path, gpt2(), config), loaded(tmp_path), exact=kind == "ia3")


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("width", [24, 16])
def test_experts(tmp_path, stacked, width):
    """Of models that hold experts one by one, as on the hub, or stacked, as in memory; of squares, too."""
    config = peft.LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, use_rslora=True, **EXPERTS)
    own = tuned(tmp_path, mixtral(intermediate_size=width), config)
    if stacked:
        save_file(own.get_base_model().state_dict() | {}, tmp_path / "x.safetensors")
        names = {n: n.replace(".base_layer", "") for n in load_file(tmp_path / "x.safetensors")}
        state = {names[n]: t for n, t in load_file(tmp_path / "x.safetensors").items() if "lora_" not in n}
        save_file(state, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    merged = own.merge_and_unload()
    if stacked:
        expected = merged.state_dict()
    else:
        merged.save_pretrained(tmp_path / "theirs")
        expected = load_file(tmp_path / "theirs" / "model.safetensors")
    base = loaded(tmp_path)
    fastmerge.merge(recipe(tmp_path), tmp_path / "out", ram="64MiB")
    changed = check(load_file(tmp_path / "out" / "model.safetensors"), expected, base)
    assert len(changed) == (4 if stacked else 18)


@pytest.mark.parametrize("names", [["q_proj.weight"], ["mlp.experts.down_proj", "q_proj.weight"]])
def test_other_parameters(tmp_path, names):
    """Weights of linear layers can be named as parameters, and one of several parameters of a module."""
    config = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=[], target_parameters=names)
    changed = check(*fold(tmp_path, mixtral(), config), loaded(tmp_path))
    assert len(changed) == 2 + 6 * (len(names) - 1)


def test_tokens_of_a_tied_head(tmp_path):
    """PEFT stores the embedding's rows once more for the head that is tied to it."""
    config = peft.TrainableTokensConfig(token_indices=[1, 5])
    check(*fold(tmp_path, llama(tie_word_embeddings=True), config), loaded(tmp_path), exact=True)


def test_a_converted_adapter_is_plain(tmp_path):
    """PiSSA moves the base; PEFT's conversion makes LoRA of the original base out of it."""
    torch.manual_seed(0)
    model = llama()
    model.save_pretrained(tmp_path / "base")
    own = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=BOTH, init_lora_weights="pissa"))
    own.peft_config["default"].init_lora_weights = True
    own.save_pretrained(tmp_path / "init")
    own.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for parameter in own.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape)
    own.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InvalidInput, match=r"'pissa' changes the base's weights \(with PEFT, save the adapter before"):
        fastmerge.check(recipe(tmp_path))
    own.save_pretrained(tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "init"))
    fastmerge.merge(recipe(tmp_path), tmp_path / "out")
    expected = own.merge_and_unload().state_dict()
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)


def rewritten(tmp_path, **changes):
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return recipe(tmp_path)


REFUSED = [
    ({"peft_type": "PREFIX_TUNING"}, "peft_type PREFIX_TUNING changes no weights of its base"),
    ({"peft_type": "XLORA"}, "peft_type XLORA changes no weights of its base"),
    ({"peft_type": "HRA"}, "peft_type is 'HRA', expected one of LORA, .*merge_and_unload"),
    ({"init_lora_weights": "lora_ga"}, "'lora_ga' changes the base's weights .*path_initial_model_for_weight_conver"),
    ({"init_lora_weights": "loftq"}, r"'loftq' changes the base's weights \(load it with PEFT on the base"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is not offered: an activated LoRA"),
    ({"use_qalora": True}, "use_qalora is not offered: QA-LoRA pools its input"),
    ({"kasa_config": {"x": 1}}, "kasa_config is not offered"),
    ({"r": 0}, "r is 0, expected a number"),
    ({"trainable_token_indices": [1, 1]}, None),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_what_cannot_be_folded(tmp_path, changes, words):
    tuned(tmp_path, llama(), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    if words is None:
        fastmerge.check(rewritten(tmp_path, **changes))
        return
    with pytest.raises(InvalidInput, match=words):
        fastmerge.check(rewritten(tmp_path, **changes))


BROKEN = [
    ("tokens", {"token_indices": [1, 2, 3]}, {}, "trainable tokens of shape .2, 32., but the config has 3 indices"),
    ("tokens", {"token_indices": [1, 99]}, {}, r"embed_tokens.weight \[100, 32\] for \[64, 32\]"),
    ("vera", {"save_projection": False}, {}, "save_projection is false: the projections"),
    ("vera", {}, {"base_model.vera_A": None}, "holds no base_model.vera_A"),
    ("loha", {}, {"hada_w1_a": (48, 2)}, "with parts that do not fit each other"),
    ("loha", {}, {"hada_w1_a": None}, "tensors are no part of such an adapter: .*without w1_a"),
    ("boft", {}, {"boft_R": (2, 8, 4, 4)}, "boft_n_butterfly_factor is 2: several factors are not offered"),
    ("oft", {"num_cayley_neumann_terms": "x"}, {}, "num_cayley_neumann_terms and eps are 'x' and"),
    ("oft", {}, {"oft_R.weight": (4, 27)}, "with parts that do not fit each other"),
    ("lokr", {}, {"lokr_w1": (5, 4)}, r"q_proj.weight \[.*\] for \[32, 32\]"),
]


@pytest.mark.parametrize(("kind", "changes", "tensors", "words"), BROKEN)
def test_broken_adapters(tmp_path, kind, changes, tensors, words):
    """Tensors whose names end as said get another shape, or go."""
    tuned(tmp_path, llama(), KINDS[kind][0])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    stored = load_file(path)
    for end, shape in tensors.items():
        for name in [name for name in stored if name.endswith(end)]:
            del stored[name]
            if shape is not None:
                stored[name] = torch.zeros(shape)
    save_file(stored, path)
    with pytest.raises(InvalidInput, match=words):
        fastmerge.check(rewritten(tmp_path, **changes))


def test_experts_of_another_model(tmp_path):
    config = peft.LoraConfig(r=2, init_lora_weights=False, **EXPERTS)
    tuned(tmp_path, mixtral(), config)
    mixtral(num_local_experts=2).save_pretrained(tmp_path / "base")
    with pytest.raises(InvalidInput, match=r"do not fit the experts .*gate_up_proj \[2, 48, 16\]"):
        fastmerge.check(recipe(tmp_path))
    llama().save_pretrained(tmp_path / "base")
    with pytest.raises(InvalidInput, match=r"has no model.layers.0.mlp.experts.\w+_proj, neither stacked nor one"):
        fastmerge.check(recipe(tmp_path))


@pytest.mark.parametrize("kind", ["loha", "lokr", "oft", "boft", "vera", "adalora"])
def test_chunks_do_not_matter(tmp_path, kind):
    """The bits are those of one chunk, whatever the chunks and threads."""
    tuned(tmp_path, llama(hidden_size=64, intermediate_size=1600), KINDS[kind][0])
    digests = set()
    for ram, threads in (("64MiB", 1), ("16MiB", 2)):
        out = tmp_path / f"out-{threads}"
        fastmerge.merge(recipe(tmp_path), out, ram=ram, threads=threads)
        digests.add((out / "model.safetensors").read_bytes())
    assert len(digests) == 1


def test_kinds_that_peft_has_not_for_transposed_weights(tmp_path):
    gpt2().save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    config = {"peft_type": "LOHA", "r": 2, "alpha": 2, "target_modules": ["c_attn"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    prefix = "base_model.model.transformer.h.0.attn.c_attn.hada_"
    sides = {"w1_a": (32, 2), "w1_b": (2, 96), "w2_a": (32, 2), "w2_b": (2, 96)}
    factors = {prefix + side: torch.ones(shape) for side, shape in sides.items()}
    save_file(factors, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(InvalidInput, match=r"c_attn\S*: loha of a transposed weight is not offered \(merge it with"):
        fastmerge.check(recipe(tmp_path))
