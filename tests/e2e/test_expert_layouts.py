"""Experts one by one, as on the hub, and stacked, as transformers 5 has them, in one recipe: values, units, loading."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from mergekit_peer import merge_all, mergekit_python
from safetensors.torch import load_file, save_file

import fastmerge
from fastmerge.plan import make_plan
from fastmerge.recipe import load

SIZE = {
    "hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 32, "max_position_embeddings": 64,
}  # fmt: skip
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2}
CONFIGS = {
    "qwen3_moe": EXPERTS,
    "mixtral": {"num_local_experts": 3},
    "deepseek_v3": {
        "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4,
        "num_key_value_heads": 4,
    },
    "gpt_oss": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "llama4_text": {"num_local_experts": 3, "interleave_moe_layer_step": 1, "intermediate_size_mlp": 24},
}  # fmt: skip
BOTH = ("qwen3_moe", "mixtral", "deepseek_v3")
METHODS = {
    "linear": {"weight": 0.5},
    "ties": {"weight": 0.7, "density": 0.4},
    "dare_ties": {"weight": 0.7, "density": 0.5},
    "slerp": {"t": 0.3},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Folders ``<type>/<base or tuned>/<hub or stacked>``."""
    pytest.importorskip("transformers", minversion="5.0")
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("models")
    for kind, own in CONFIGS.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**SIZE, **own}))
        for name in ("base", "tuned"):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn(parameter.shape))
            for layout in ("hub", "stacked"):
                model.save_pretrained(folder / kind / name / layout, save_original_format=layout == "hub")
    return folder


def recipe(folder: Path, layouts: tuple[str, str], method: str, **more) -> dict:
    base, tuned = (str(folder / name / layout) for name, layout in zip(("base", "tuned"), layouts, strict=True))
    entries = [
        {"model": model, "parameters": METHODS[method]} for model in ([base, tuned] if method == "linear" else [tuned])
    ]
    data = {"merge_method": method, "models": entries, "dtype": "float32"} | more
    if method == "slerp":
        data |= {"models": [{"model": base}, {"model": tuned}], "parameters": METHODS[method]}
    return data if method == "linear" else data | {"base_model": base}


def merged(data: dict, out: Path) -> dict[str, torch.Tensor]:
    fastmerge.merge(data, out)
    return load_file(out / "model.safetensors")


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    return model.state_dict()


def ties(base: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
    dicts = ({"tensor": tensor.contiguous()} for tensor in (base, tuned))
    return fastmerge.merge_state_dicts(next(dicts), [next(dicts)], method="ties", **METHODS["ties"])["tensor"]


def names(folder: Path) -> set[str]:
    return set(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", BOTH)
def test_layouts_in_one_recipe(models, tmp_path, kind, method):
    """Whatever the layouts, the same values; the output has the layout of the base, or of the first model."""
    results = {}
    for layouts in (("hub", "hub"), ("hub", "stacked"), ("stacked", "hub"), ("stacked", "stacked")):
        out = tmp_path / "-".join(layouts)
        merged(recipe(models / kind, layouts, method), out)
        assert names(out) == names(models / kind / "base" / layouts[0])
        assert fastmerge.verify(out).ok
        results[layouts] = loaded(out)
    wanted = results["hub", "hub"]
    # The names by which random numbers are drawn are those of the first model: Mixtral's differ between the layouts.
    invariant = kind != "mixtral" or method != "dare_ties"
    for layouts, found in results.items():
        assert found.keys() == wanted.keys()
        if invariant or layouts[0] == "hub":
            assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items()), layouts


@pytest.mark.parametrize("kind", BOTH)
def test_the_unit_is_one_expert_or_the_stack(models, tmp_path, kind):
    layer = "model.layers.1.mlp.experts."
    base, tuned = (load_file(models / kind / name / "stacked" / "model.safetensors") for name in ("base", "tuned"))
    stacks = {name: ties(base[name], tuned[name]) for name in (f"{layer}gate_up_proj", f"{layer}down_proj")}
    units = {}
    for name, halves in ((f"{layer}gate_up_proj", 2), (f"{layer}down_proj", 1)):
        pairs = zip(base[name], tuned[name], strict=True)
        experts = [torch.cat([ties(*p) for p in zip(a.chunk(halves), b.chunk(halves), strict=True)]) for a, b in pairs]
        units[name] = torch.stack(experts)
        assert not torch.equal(units[name], stacks[name])
    for layouts in (("hub", "stacked"), ("stacked", "hub"), ("hub", "hub"), ("stacked", "stacked")):
        for semantics, wanted in ((None, units), ("mergekit", stacks)):
            out = tmp_path / f"{'-'.join(layouts)}-{semantics}"
            merged(recipe(models / kind, layouts, "ties", semantics=semantics), out)
            assert names(out) == names(models / kind / "base" / layouts[0])
            found = loaded(out)
            assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items()), (layouts, semantics)
            report = fastmerge.verify(out)
            assert report.ok, report.mismatches


@pytest.mark.parametrize("kind", ["gpt_oss", "llama4_text"])
def test_stacks_of_transposed_experts_are_cut_by_experts(models, tmp_path, kind):
    base, tuned = (load_file(models / kind / name / "hub" / "model.safetensors") for name in ("base", "tuned"))
    data = recipe(models / kind, ("hub", "hub"), "ties")
    found = merged(data, tmp_path / "out")
    whole = merged(data | {"semantics": "mergekit"}, tmp_path / "whole")
    assert found.keys() == whole.keys() == base.keys()
    for name in (n for n in base if ".experts." in n):
        pairs = list(zip(base[name], tuned[name], strict=True))
        units = [ties(a, b) for a, b in pairs]
        stack = ties(base[name], tuned[name])
        assert torch.equal(found[name], torch.stack(units))
        assert torch.equal(whole[name], stack)
        assert not torch.equal(found[name], whole[name])
    assert fastmerge.verify(tmp_path / "out").ok
    loaded(tmp_path / "out")


def test_slices_shards_and_damage(models, tmp_path):
    """Layers of a stacked model behind those of one with single experts; several files; a byte that changed."""
    one, two = str(models / "qwen3_moe" / "base" / "stacked"), str(models / "qwen3_moe" / "tuned" / "hub")
    slices = [{"sources": [{"model": m, "layer_range": [0, 2]}]} for m in (one, two)]
    out = tmp_path / "out"
    fastmerge.merge({"merge_method": "passthrough", "slices": slices}, out, shard_size=20_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == {n for file in out.glob("*.safetensors") for n in load_file(file)}
    assert "model.layers.3.mlp.experts.gate_up_proj" in index
    found, source = loaded(out), loaded(Path(two))
    for name, tensor in source.items():
        if ".layers." in name:
            moved = name.replace("layers.0", "layers.2").replace("layers.1", "layers.3")
            assert torch.equal(found[moved], tensor)
    assert fastmerge.verify(out).ok
    path = out / index["model.layers.3.mlp.experts.gate_up_proj"]
    entry = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    begin = entry["model.layers.3.mlp.experts.gate_up_proj"]["data_offsets"][0]
    data = bytearray(path.read_bytes())
    data[8 + int.from_bytes(data[:8], "little") + begin] ^= 1
    path.write_bytes(data)
    (problem,) = fastmerge.verify(out).mismatches
    assert "layers.3.mlp.experts.0.gate_proj.weight" in str(problem)


def test_a_rule_for_one_expert_of_a_stack(models, tmp_path):
    one, two = (str(models / "qwen3_moe" / name / "stacked") for name in ("base", "tuned"))
    rules = [{"filter": "experts.1.gate_proj", "source": one}]
    data = {"merge_method": "linear", "models": [one, two], "parameters": {"weight": 1}, "rules": rules}
    fastmerge.merge(data, tmp_path / "out")
    base = load_file(Path(one) / "model.safetensors")["model.layers.0.mlp.experts.gate_up_proj"]
    found = load_file(tmp_path / "out" / "model.safetensors")["model.layers.0.mlp.experts.gate_up_proj"]
    assert torch.equal(found[1, :24], base[1, :24])
    assert not torch.equal(found[1, 24:], base[1, 24:])


def test_a_stack_that_is_transposed(models, tmp_path):
    base, other = models / "qwen3_moe" / "base" / "stacked", tmp_path / "other"
    shutil.copytree(base, other)
    tensors = load_file(base / "model.safetensors")
    turned = {n: t.transpose(1, 2).contiguous() if t.dim() == 3 else t for n, t in tensors.items()}
    save_file(turned, other / "model.safetensors")
    data = {"merge_method": "linear", "models": [str(base), str(other)], "parameters": {"weight": 1}}
    with pytest.raises(fastmerge.InvalidInput, match=r"down_proj: is \[3, 24, 16\], but \[3, 16, 24\] in the first"):
        fastmerge.merge(data, tmp_path / "out")


def test_stacks_that_cannot_be_cut_stay_whole(models, tmp_path):
    """An adapter of stacked experts is folded into the stack, and the others are stacked for it."""
    base, hub = models / "qwen3_moe" / "base" / "stacked", models / "qwen3_moe" / "tuned" / "hub"
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    factors = {"lora_A.weight": torch.randn(6, 24), "lora_B.weight": torch.randn(16, 6)}
    prefix = "base_model.model.model.layers.1.mlp.experts."
    save_file({prefix + name: tensor for name, tensor in factors.items()}, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_parameters": ["mlp.experts.down_proj"],
              "target_modules": []}  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    entries = [{"model": model, "parameters": METHODS["ties"]} for model in (f"{base}+{adapter}", str(hub))]
    data = {"merge_method": "ties", "base_model": str(base), "models": entries}
    assert "1 stacks of experts are quantized or adapted as one" in " ".join(make_plan(load(data)).notes)
    found = merged(data, tmp_path / "out")
    assert names(tmp_path / "out") == names(base)
    whole = merged(data | {"semantics": "mergekit"}, tmp_path / "whole")
    down = "model.layers.{}.mlp.experts.down_proj"
    assert torch.equal(found[down.format(1)], whole[down.format(1)])
    assert not torch.equal(found[down.format(0)], whole[down.format(0)])
    assert fastmerge.verify(tmp_path / "out").ok


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOTH)
def test_semantics_mergekit_is_what_mergekit_does(models, tmp_path, kind):
    """mergekit 0.1.5 stacks the experts of both layouts, merges stacks, and writes them."""
    mergekit_python()
    cases = {}
    for method in ("ties", "slerp", "linear"):
        file = tmp_path / f"{method}.yml"
        file.write_text(yaml.safe_dump(recipe(models / kind, ("hub", "stacked"), method)))
        cases[method] = (file, tmp_path / "theirs" / method)
    assert merge_all(cases) == dict.fromkeys(cases)
    for method, (file, theirs) in cases.items():
        fastmerge.merge(file, tmp_path / method, semantics="mergekit")
        assert fastmerge.verify_recipe(file, theirs, semantics="mergekit").verdict in ("equal", "within rounding")
        found, wanted = loaded(tmp_path / method), loaded(theirs)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            # Ten units in the last place of the largest element, as in the parity of dense models.
            assert (found[name] - tensor).abs().max() <= 10 * 2**-24 * tensor.abs().max().clamp(min=1e-9), name
