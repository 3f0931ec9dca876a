"""LoRA adapters: scale, patterns, and everything that is more than a low-rank term."""

from __future__ import annotations

import json
import math

import pytest
import torch
from checkpoint_files import read_entry, write_adapter
from safetensors.torch import load_file, save_file

from fastmerge.checkpoint import read_adapter
from fastmerge.errors import CheckpointError

MODULES = {"model.layers.0.self_attn.q_proj": (8, 6), "model.layers.0.mlp.up_proj": (10, 6)}


def test_terms(tmp_path):
    tensors = write_adapter(tmp_path, MODULES, rank=2, lora_alpha=5)
    file, terms, replaced, experts = read_adapter(str(tmp_path))
    assert not replaced and not experts
    assert file.path.endswith("adapter_model.safetensors")
    assert terms.keys() == {f"{module}.weight" for module in MODULES}
    for module in MODULES:
        term = terms[f"{module}.weight"]
        assert term.scale == 2.5
        assert term.kind == "lora"
        for part, side in zip(term.parts, "BA", strict=True):
            assert torch.equal(read_entry(part), tensors[f"base_model.model.{module}.lora_{side}.weight"])


def test_rank_stabilized(tmp_path):
    write_adapter(tmp_path, MODULES, rank=3, lora_alpha=6, use_rslora=True)
    assert {term.scale for term in read_adapter(str(tmp_path))[1].values()} == {6 / math.sqrt(3)}


def test_patterns(tmp_path):
    write_adapter(
        tmp_path, MODULES, rank=2, lora_alpha=4, rank_pattern={"up_proj": 4}, alpha_pattern={"layers.0.*q_proj": 1}
    )
    terms = read_adapter(str(tmp_path))[1]
    assert terms["model.layers.0.mlp.up_proj.weight"].scale == 4 / 4
    assert terms["model.layers.0.self_attn.q_proj.weight"].scale == 1 / 2


def test_agrees_with_peft(tmp_path):
    peft = pytest.importorskip("peft")
    shapes = {"up_proj": (6, 10), "q_proj": (6, 8)}
    model = torch.nn.ModuleDict({name: torch.nn.Linear(*shape, bias=False) for name, shape in shapes.items()})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=["up_proj", "q_proj"], init_lora_weights=False, rank_pattern={"up_proj": 3}
    )
    tuned = peft.get_peft_model(model, config)
    tuned.save_pretrained(tmp_path)
    terms = read_adapter(str(tmp_path))[1]
    for name, expected in tuned.merge_and_unload().state_dict().items():
        term = terms[name]
        up, down = map(read_entry, term.parts)
        got = before[name] + term.scale * up @ down
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "alpha is None, expected a number"),
        ({"peft_type": "NEW"}, "peft_type is 'NEW', expected one of LORA, ADALORA"),
        ({"peft_type": ["LORA"]}, "expected one of LORA"),
        ({"use_dora": True}, "without its magnitude"),
        ({"lora_bias": True}, "without the bias of lora_B"),
        ({"target_parameters": "experts"}, "target_parameters is 'experts', expected a list of names"),
        ({"velora_config": {"x": 1}}, "velora_config is not offered"),
        ({"rank_pattern": {"*.q_proj": 2}}, r"adapter_config.json: rank_pattern: '\*.q_proj' is no regular expression"),
        ({"alpha_pattern": {"q_proj": "2"}}, "alpha_pattern: 'q_proj' is '2', expected a number"),
        ({"alpha_pattern": [2]}, "alpha_pattern is .2., expected a mapping"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base's weights"),
        ({"r": None}, "r is None, expected a number"),
        ({"r": 3}, "has ranks 2 and 2, but 3 in its config"),
    ],
)
def test_refuses(tmp_path, change, message):
    write_adapter(tmp_path, MODULES)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        read_adapter(str(tmp_path))


def test_names_all_reasons(tmp_path):
    write_adapter(tmp_path, MODULES, use_qalora=True, init_lora_weights="pissa")
    with pytest.raises(CheckpointError, match=r"use_qalora.*pissa.*merge_and_unload"):
        read_adapter(str(tmp_path))


@pytest.mark.parametrize(
    "extra",
    [
        "base_model.model.lm_head.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector",
    ],
)
def test_refuses_other_tensors(tmp_path, extra):
    write_adapter(tmp_path, MODULES)
    path = tmp_path / "adapter_model.safetensors"
    save_file(load_file(path) | {extra: torch.zeros(2, 2)}, path)
    with pytest.raises(
        CheckpointError, match=extra.removeprefix("base_model.model.").removesuffix(".lora_embedding_A")
    ):
        read_adapter(str(tmp_path))


def test_a_file_without_tensors(tmp_path):
    write_adapter(tmp_path, {})
    with pytest.raises(CheckpointError, match="holds no tensor, so the adapter changes nothing"):
        read_adapter(str(tmp_path))


def test_a_name_with_and_without_its_prefix(tmp_path):
    tensors = write_adapter(tmp_path, MODULES)
    extra = {name.removeprefix("base_model.model."): 5 * tensor for name, tensor in tensors.items()}
    save_file(tensors | extra, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"lora_A.weight, .* with and without base_model.model."):
        read_adapter(str(tmp_path))


def test_half_a_pair(tmp_path):
    write_adapter(tmp_path, MODULES)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="only lora_A"):
        read_adapter(str(tmp_path))


def test_no_weights(tmp_path):
    write_adapter(tmp_path, MODULES)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        read_adapter(str(tmp_path))
