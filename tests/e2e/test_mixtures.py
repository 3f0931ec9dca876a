"""Mixtures of experts that are built from dense models: values, loading by transformers, errors, the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from dense_models import save_dense
from safetensors.torch import load_file, save_file

import fastmerge
from fastmerge.checkpoint.distributed import chunks
from fastmerge.cli import main
from fastmerge.conversion import to_dcp

PROMPTS = [["the cat runs code", "hello king"], ["math adds numbers"]]
NEGATIVE = ["red blue"]
KINDS = {"mixtral": "mistral", "qwen": "qwen2", "qwen3": "qwen3", "deepseek": "llama"}
CLASSES = {"mixtral": "MixtralForCausalLM", "qwen": "Qwen2MoeForCausalLM", "qwen3": "Qwen3MoeForCausalLM"}
BLOCK = {"mixtral": "block_sparse_moe", "qwen": "mlp", "qwen3": "mlp", "deepseek": "mlp"}

pytestmark = pytest.mark.filterwarnings("ignore:.*rope_parameters.*")


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    """Folders ``<kind>/base``, ``one``, ``two``."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("dense")
    for kind in KINDS.values():
        for seed, name in enumerate(("base", "one", "two")):
            save_dense(folder / kind / name, kind, seed)
    return folder


def recipe(dense: Path, family: str, **changes) -> dict:
    models = dense / KINDS[family]
    experts = [
        {"source_model": str(models / "one"), "positive_prompts": PROMPTS[0], "negative_prompts": NEGATIVE},
        {"source_model": str(models / "two"), "positive_prompts": PROMPTS[1]},
    ]
    found = {"base_model": str(models / "base"), "gate_mode": "random", "experts": experts, "architecture": family}
    if family == "qwen":
        found["shared_experts"] = [{"source_model": str(models / "two"), "positive_prompts": ["hero"]}]
    return found | changes


def build(data: dict, out: Path) -> dict[str, torch.Tensor]:
    fastmerge.merge(data, out)
    return load_file(out / "model.safetensors")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("family", KINDS)
def test_weights_are_those_of_the_models(dense, tmp_path, family):
    found = build(recipe(dense, family), tmp_path / "out")
    base, *experts = (weights(dense / KINDS[family] / name) for name in ("base", "one", "two"))
    called = {"gate": "w1", "up": "w3", "down": "w2"} if family == "mixtral" else None
    used = set()
    for name, tensor in base.items():
        if ".mlp." not in name:
            assert torch.equal(found[name], tensor)
            used.add(name)
            continue
        prefix, projection = name.removesuffix("_proj.weight").split("mlp.")
        own = called[projection] if called else f"{projection}_proj"
        for i, expert in enumerate(experts):
            routed = f"{prefix}{BLOCK[family]}.experts.{i}.{own}.weight"
            assert torch.equal(found[routed], expert[name])
            used.add(routed)
        if family == "qwen":
            shared = f"{prefix}mlp.shared_expert.{own}.weight"
            assert torch.equal(found[shared], experts[1][name])
            used.add(shared)
    gates = [f"model.layers.{i}.{BLOCK[family]}.gate.weight" for i in range(2)]
    gates += [f"model.layers.{i}.mlp.shared_expert_gate.weight" for i in range(2) if family == "qwen"]
    assert found.keys() - used == set(gates)
    assert all(found[name].shape == (1 if "shared" in name else 2, 16) for name in gates)


@pytest.mark.parametrize("mode", ["hidden", "cheap_embed", "uniform_random"])
@pytest.mark.parametrize("family", CLASSES)
def test_transformers_loads_and_runs_them(dense, tmp_path, family, mode):
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    found = build(recipe(dense, family, gate_mode=mode), out)
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert type(model).__name__ == CLASSES[family]
    assert not any(info.values())
    assert model.config.num_experts_per_tok == 2
    assert getattr(model.config, "num_local_experts", 0) == 2 or model.config.num_experts == 2
    tokens = torch.tensor([[1, 4, 5, 6]])
    with torch.no_grad():
        assert model(tokens).logits.isfinite().all()
    stored = {n: t for n, t in model.state_dict().items() if n.endswith(".gate.weight")}
    assert stored
    for name, tensor in stored.items():
        assert torch.equal(tensor, found[name.replace("mlp", BLOCK[family])])
    assert fastmerge.verify(out).ok


def test_a_mixture_of_one_model_computes_what_the_model_does(dense, tmp_path):
    from transformers import AutoModelForCausalLM

    base = str(dense / "mistral" / "base")
    data = {"base_model": base, "gate_mode": "random", "experts": [{"source_model": base}] * 2}
    build(data, tmp_path / "out")
    tokens = torch.tensor([[1, 4, 5, 6, 7]])
    with torch.no_grad():
        one, other = (AutoModelForCausalLM.from_pretrained(p)(tokens).logits for p in (base, tmp_path / "out"))
    torch.testing.assert_close(one, other)


def ids(model: Path, prompts: list[str]) -> list[list[int]]:
    """The tokens of prompts; transformers may take another tokenizer than the one that was saved."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)(prompts)["input_ids"]


def normalized(row: torch.Tensor) -> torch.Tensor:
    return row / row.norm()


def test_routers_of_embeddings(dense, tmp_path):
    found = build(recipe(dense, "mixtral", gate_mode="cheap_embed"), tmp_path / "out")
    embedding = weights(dense / "mistral" / "base")["model.embed_tokens.weight"]
    directions = [
        normalized(embedding[[t for tokens in ids(dense / "mistral" / "base", prompts) for t in tokens]].sum(0))
        for prompts in (*PROMPTS, NEGATIVE)
    ]
    expected = torch.stack([normalized(directions[0] - directions[2]), directions[1]])
    for layer in range(2):
        torch.testing.assert_close(found[f"model.layers.{layer}.block_sparse_moe.gate.weight"], expected)


def test_embeddings_are_read_from_other_files_too(dense, tmp_path):
    stored = tmp_path / "base"
    shutil.copytree(dense / "mistral" / "base", stored)
    torch.save(weights(stored), stored / "pytorch_model.bin")
    (stored / "model.safetensors").unlink()
    expected = build(recipe(dense, "mixtral", gate_mode="cheap_embed"), tmp_path / "expected")
    found = build(recipe(dense, "mixtral", gate_mode="cheap_embed", base_model=str(stored)), tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.fixture
def of_training(dense, tmp_path, monkeypatch) -> str:
    """The base as a checkpoint of training, whose files hold its tensors in pieces."""
    monkeypatch.setattr(chunks, "AT_ONCE", 300)
    to_dcp(dense / "mistral" / "base", tmp_path / "base")
    return str(tmp_path / "base")


def test_embeddings_of_checkpoints_of_training(dense, tmp_path, of_training):
    expected = build(recipe(dense, "mixtral", gate_mode="cheap_embed"), tmp_path / "expected")
    found = build(recipe(dense, "mixtral", gate_mode="cheap_embed", base_model=of_training), tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_checkpoint_of_training_takes_config_tokenizer_and_names_from_elsewhere(dense, tmp_path, of_training):
    own, stored = recipe(dense, "mixtral", gate_mode="cheap_embed"), Path(of_training)
    expected = build(own, tmp_path / "expected")
    to_dcp(stored, tmp_path / "run", names={"net.{rest*}": "model.{rest*}", "{rest*}": "{rest*}"})
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
    elsewhere = {"names": {"net.{rest*}": "model.{rest*}", "{rest*}": "{rest*}"}, "config_source": own["base_model"]}
    found = build({**own, "base_model": str(tmp_path / "run"), **elsewhere}, tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert fastmerge.verify(tmp_path / "out").ok
    for key in elsewhere:
        with pytest.raises(fastmerge.errors.InvalidInput, match=f"{key}: is of checkpoints of torch"):
            build({**own, key: elsewhere[key]}, tmp_path / "no")


def test_hidden_states_need_a_model_that_transformers_loads(dense, tmp_path, of_training):
    with pytest.raises(fastmerge.FastmergeError, match=r"cannot run the base .* no folder that transformers loads"):
        fastmerge.merge(recipe(dense, "mixtral", gate_mode="hidden", base_model=of_training), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["cheap_embed", "hidden"])
def test_a_token_without_a_row_in_the_embedding(dense, tmp_path, mode):
    from transformers import AutoTokenizer

    base = tmp_path / "base"
    shutil.copytree(dense / "mistral" / "base", base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = len(weights(base)["model.embed_tokens.weight"])
    tokenizer.add_tokens([f"new{i}" for i in range(rows)])
    tokenizer.save_pretrained(base)
    data = recipe(dense, "mixtral", gate_mode=mode, base_model=str(base))
    data["experts"][0]["positive_prompts"] = [f"new{rows - 1}"]
    expected = f"the prompt 'new{rows - 1}' has the token {len(tokenizer) - 1}, but the embedding .* has {rows} rows"
    with pytest.raises(fastmerge.FastmergeError, match=expected):
        fastmerge.merge(data, tmp_path / "out")


@pytest.mark.parametrize("family", ["mixtral", "qwen"])
def test_routers_of_hidden_states(dense, tmp_path, family):
    from transformers import AutoModelForCausalLM

    found = build(recipe(dense, family, gate_mode="hidden"), tmp_path / "out")
    base = dense / KINDS[family] / "base"
    model = AutoModelForCausalLM.from_pretrained(base)

    def mean(prompts, layer):
        with torch.no_grad():
            states = [model(torch.tensor([t]), output_hidden_states=True).hidden_states for t in ids(base, prompts)]
        return torch.stack([state[layer][0, -1] for state in states]).mean(0)

    for layer in range(2):
        router = found[f"model.layers.{layer}.{BLOCK[family]}.gate.weight"]
        torch.testing.assert_close(router[1], normalized(mean(PROMPTS[1], layer)))
        if family == "qwen":
            shared = found[f"model.layers.{layer}.mlp.shared_expert_gate.weight"]
            torch.testing.assert_close(shared[0], normalized(mean(["hero"], layer)))
        else:
            torch.testing.assert_close(router[0], normalized(mean(PROMPTS[0], layer) - mean(NEGATIVE, layer)))


def test_random_routers_depend_on_seed_and_layer(dense, tmp_path):
    data = recipe(dense, "qwen3")
    name = "model.layers.{}.mlp.gate.weight"
    one, same, other = (build(data | {"seed": seed}, tmp_path / str(i)) for i, seed in enumerate((1, 1, 2)))
    assert torch.equal(one[name.format(0)], same[name.format(0)])
    assert not torch.equal(one[name.format(0)], one[name.format(1)])
    assert not torch.equal(one[name.format(0)], other[name.format(0)])
    values = torch.cat([t.flatten() for found in (one, other) for n, t in found.items() if n.endswith(".gate.weight")])
    assert abs(values.mean()) < 0.5
    assert 0.7 < values.std() < 1.3
    uniform = build(data | {"gate_mode": "uniform_random"}, tmp_path / "uniform")[name.format(0)]
    assert 0.1 < uniform.abs().max() < 0.25  # 1 / sqrt(16)


def test_scale_and_noise(dense, tmp_path):
    data = recipe(dense, "mixtral")
    data["experts"][0] |= {"residual_scale": 0.5}
    data["experts"][1] |= {"residual_scale": 0.1, "noise_scale": 0.5}
    found = build(data, tmp_path / "out")
    assert fastmerge.verify(tmp_path / "out").ok
    for layer in range(2):
        for own, name in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
            scales = (0.5, 0.1) if own == "w2" else (1, 1)
            experts = [
                found[f"model.layers.{layer}.block_sparse_moe.experts.{i}.{own}.weight"] / scale
                for i, scale in enumerate(scales)
            ]
            dense_name = f"model.layers.{layer}.mlp.{name}_proj.weight"
            assert torch.equal(experts[0], weights(dense / "mistral" / "one")[dense_name])
            noise = experts[1] - weights(dense / "mistral" / "two")[dense_name]
            assert 0.4 < noise.std() < 0.6
            assert abs(noise.mean()) < 0.1


def test_dtype_and_adapters(dense, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    target = "base_model.model.model.layers.0.mlp.up_proj"
    up, down = torch.randn(24, 2), torch.randn(2, 16)
    save_file({f"{target}.lora_A.weight": down, f"{target}.lora_B.weight": up}, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["up_proj"], "layers_to_transform": [0]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    data = recipe(dense, "mixtral", dtype="bfloat16")
    data["experts"][0]["source_model"] += f"+{adapter}"
    found = build(data, tmp_path / "out")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    dense_up = weights(dense / "mistral" / "one")["model.layers.0.mlp.up_proj.weight"]
    adapted = found["model.layers.0.block_sparse_moe.experts.0.w3.weight"]
    torch.testing.assert_close(adapted, (dense_up + up @ down).bfloat16(), rtol=2**-7, atol=1e-5)


def test_shared_experts_of_deepseek(dense, tmp_path):
    data = recipe(dense, "deepseek", shared_experts=[{"source_model": str(dense / "llama" / "two")}])
    data["shared_experts"][0]["residual_scale"] = 0.25
    found = build(data, tmp_path / "out")
    down = weights(dense / "llama" / "two")["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(found["model.layers.1.mlp.shared_experts.down_proj.weight"], 0.25 * down)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "deepseek"
    assert (config["n_routed_experts"], config["n_shared_experts"], config["moe_intermediate_size"]) == (2, 1, 24)


def refused(data: dict, out: Path) -> str:
    with pytest.raises(fastmerge.InvalidInput) as caught:
        fastmerge.merge(data, out)
    assert not out.exists()
    return str(caught.value)


def test_models_that_do_not_fit(dense, tmp_path):
    out = tmp_path / "out"
    data = recipe(dense, "mixtral")
    for change, message in (
        ({"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}, "num_attention_heads"),
        ({"vocab_size": 40}, r"the vocabulary has 40 rows, that of the base"),
        ({"intermediate_size": 40}, r"shape [16, 40], but [16, 24] in the base"),
        ({"num_hidden_layers": 1}, "3 tensors of the base"),
    ):
        other = save_dense(tmp_path / next(iter(change)), "mistral", 5, **change)
        data["experts"][0]["source_model"] = str(other)
        assert message in refused(data, out)
    data["experts"][0]["source_model"] = str(dense / "qwen3" / "one")
    text = refused(data, out)
    assert "model_type is 'qwen3'" in text
    assert text.startswith("1 problem") or text.count("model_type is") == 1


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("mixtral", {"architecture": "qwen"}, "architecture: qwen is made of qwen2 models, but"),
        ("mixtral", {"architecture": "grok"}, "architecture: is 'grok', expected one of mixtral, deepseek, qwen"),
        ("qwen", {"shared_experts": []}, "lists 0 models; qwen has exactly one shared expert"),
        ("mixtral", {"shared_experts": [{"source_model": "x"}]}, "x"),
        ("mixtral", {"experts_per_token": 3}, "experts_per_token: is 3, but there are 2 experts"),
        ("mixtral", {"gate_mode": "hiden"}, "gate_mode: is 'hiden'"),
        ("mixtral", {"gate_mod": "hidden"}, "gate_mod: unknown key (did you mean 'gate_mode'?)"),
        ("mixtral", {"merge_method": "linear"}, "merge_method: a recipe with experts: builds a mixture of them"),
        ("mixtral", {"dtype": "int4"}, "dtype: 'int4' is not a dtype for merged weights; expected bfloat16"),
    ],
)
def test_recipes_that_are_wrong(dense, tmp_path, family, change, message):
    assert message in refused(recipe(dense, family, **change), tmp_path / "out")


def test_experts_without_prompts(dense, tmp_path):
    data = recipe(dense, "mixtral", gate_mode="cheap_embed")
    del data["experts"][1]["positive_prompts"]
    assert "experts[1]: has no positive_prompts, of which gate_mode cheap_embed" in refused(data, tmp_path / "out")


def test_the_command(dense, tmp_path):
    file = tmp_path / "moe.yml"
    file.write_text(yaml.safe_dump(recipe(dense, "mixtral") | {"colour": "red"}))
    out = tmp_path / "out"
    options = ["--load-in-4bit", "--i-understand-this-is-not-useful-without-training", "--no-write-model-card"]
    result = CliRunner().invoke(main, ["moe", str(file), str(out), *options, "--random-seed", "3"])
    assert result.exit_code == 0, result.output
    assert "--load-in-4bit means nothing here: hidden states" in result.output
    assert "colour: is no key of a mixture of experts; it has no effect" in result.output
    assert "gate_mode: is random, so prompts have no effect" in result.output
    assert (out / "mergekit_moe_config.yml").read_text() == file.read_text()
    assert not (out / "README.md").exists()
    assert json.loads((out / "fastmerge.json").read_text())["seed"] == 3
    again = CliRunner().invoke(main, ["moe", str(file), str(out)])
    assert again.exit_code
    assert "exists" in again.output
    strict = CliRunner().invoke(main, ["moe", str(file), str(tmp_path / "strict"), "--strict"])
    assert strict.exit_code
    assert not (tmp_path / "strict").exists()
    file.write_text("merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n")
    other = CliRunner().invoke(main, ["moe", str(file), str(tmp_path / "other")])
    assert other.exit_code
