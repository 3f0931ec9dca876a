"""Mixtures of experts built by mergekit-moe 0.1.5 and here: the same weights, and routers up to stated rounding.

mergekit writes the layout that transformers 5 has in memory (the experts of a layer in one tensor), fastmerge that of
the hub (a tensor per expert); for DeepSeek both write the hub's. Shared experts are left out: with one, mergekit 0.1.5
stops ('NoneType' object has no attribute 'get_tensor').
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from dense_models import save_dense
from mergekit_peer import build_all, mergekit_python
from safetensors.torch import load_file

import fastmerge

pytestmark = pytest.mark.slow

KINDS = {"mixtral": "mistral", "qwen3": "qwen3", "deepseek": "llama"}
MODES = ("cheap_embed", "hidden", "random")
CASES = [f"{family}-{mode}-{dtype}" for family in KINDS for mode in MODES for dtype in ("float32", "bfloat16", "none")]
# mergekit runs the base in bfloat16 for hidden states: a few roundings of 2**-9 each in a vector of norm 1.
ROUNDING = {"hidden": 2**-6, "cheap_embed": 2**-23}
_PROJECTIONS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """Every case: recipe, and the folder of mergekit's result."""
    mergekit_python()
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("mixtures")
    for kind in KINDS.values():
        for seed, name in enumerate(("base", "one", "two")):
            save_dense(folder / kind / name, kind, seed)
    pairs = {}
    for case in CASES:
        family, mode, dtype = case.split("-")
        models = folder / KINDS[family]
        experts = [
            {"source_model": str(models / "one"), "positive_prompts": ["the cat runs code", "hello king"],
             "negative_prompts": ["red blue"], "residual_scale": 0.5},
            {"source_model": str(models / "two"), "positive_prompts": ["math adds numbers"],
             "negative_prompts": ["the"]},
        ]  # fmt: skip
        data = {"base_model": str(models / "base"), "architecture": family, "gate_mode": mode, "experts": experts}
        if dtype != "none":
            data["dtype"] = dtype
        recipe = folder / f"{case}.yml"
        recipe.write_text(yaml.safe_dump(data, sort_keys=False))
        pairs[case] = (recipe, folder / "theirs" / case)
    errors = build_all(pairs)
    assert errors == dict.fromkeys(CASES)
    return pairs


def per_expert(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a mixture in one layout with names of our own: gate, up and down of every expert."""
    found = {}
    for name, tensor in tensors.items():
        name = name.replace("block_sparse_moe.", "mlp.")
        if name.endswith("experts.gate_up_proj"):
            for i, expert in enumerate(tensor):
                gate, up = expert.chunk(2)
                found |= {name.replace("gate_up_proj", f"{i}.{p}"): t for p, t in (("gate", gate), ("up", up))}
        elif name.endswith("experts.down_proj"):
            found |= {name.replace("down_proj", f"{i}.down"): expert for i, expert in enumerate(tensor)}
        elif match := re.fullmatch(r"(.*experts\.\d+\.)(\w+)\.weight", name):
            found[match[1] + _PROJECTIONS.get(match[2], match[2]).removesuffix("_proj")] = tensor
        else:
            found[name] = tensor
    return found


@pytest.mark.parametrize("case", CASES)
def test_weights_and_routers(case, built, tmp_path):
    recipe, theirs = built[case]
    fastmerge.merge(recipe, tmp_path / "ours")
    found, wanted = (per_expert(load_file(f / "model.safetensors")) for f in (tmp_path / "ours", theirs))
    assert {n: (t.shape, t.dtype) for n, t in found.items()} == {n: (t.shape, t.dtype) for n, t in wanted.items()}
    _, mode, _ = case.split("-")
    for name, tensor in wanted.items():
        if not name.endswith("mlp.gate.weight"):
            assert torch.equal(found[name], tensor), name
        elif mode != "random":
            bound = max(ROUNDING[mode], torch.finfo(tensor.dtype).eps)
            assert (found[name].float() - tensor.float()).abs().max() <= bound, name


@pytest.mark.parametrize("family", KINDS)
def test_configs(family, built, tmp_path):
    recipe, theirs = built[f"{family}-random-float32"]
    fastmerge.merge(recipe, tmp_path / "ours")
    ours, other = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "ours", theirs))
    keys = ("model_type", "architectures", "num_experts_per_tok", "n_routed_experts", "first_k_dense_replace",
            "moe_intermediate_size", "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers", "auto_map",
            "hidden_size", "intermediate_size", "router_aux_loss_coef", "n_shared_experts", "scoring_func")  # fmt: skip
    assert {key: ours.get(key) for key in keys} == {key: other.get(key) for key in keys}
    if family != "deepseek":
        assert (ours.get("num_local_experts") or ours["num_experts"]) == other["num_local_experts"]
