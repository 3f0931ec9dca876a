"""Recipes, and the adapters that they name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random

import torch
import yaml
from safetensors.torch import save

from fastmerge.checkpoint import read_adapter

from ..mutations import change_bytes, change_tree, json_text
from .target import Target, plan_and_run, write_model

ADAPTER = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["q_proj"], "use_rslora": False,
    "rank_pattern": {".*q_proj": 2}, "alpha_pattern": {"^x+": 3, "q": 1}, "init_lora_weights": True,
    "modules_to_save": None, "fan_in_fan_out": False, "layers_to_transform": None, "use_dora": False,
}  # fmt: skip
RECIPE = {
    "merge_method": "ties", "base_model": "base", "dtype": "bfloat16", "out_dtype": "float32", "seed": 3,
    "models": [
        {"model": "one", "parameters": {"weight": 0.5, "density": [0.2, 0.8]}},
        {"model": "base", "parameters": {"weight": [{"filter": "mlp", "value": 0.3}, 1.0]}},
    ],
    "slices": [{"sources": [{"model": "one", "layer_range": [0, 1]}]}], "modules": {"default": {"slices": []}},
    "parameters": {"normalize": True, "lambda": 1.0}, "semantics": "mergekit", "keep_float32": ["norm"],
    "tokenizer_source": "base", "tokenizer": {"source": "union"}, "chat_template": "auto",
    "rules": [{"filter": "q_proj", "merge_method": "linear", "parameters": {"weight": 1}}],
}  # fmt: skip


class Adapter(Target):
    """Configs and weights of adapters."""

    def write(self, rng: Random, folder: Path) -> None:
        write_model(folder / "base")
        own = folder / "adapter"
        own.mkdir()
        (own / "adapter_config.json").write_bytes(json_text(rng, ADAPTER))
        prefix = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
        tensors = {f"{prefix}A.weight": torch.ones(2, 8), f"{prefix}B.weight": torch.ones(8, 2)}
        for name in list(tensors):
            kind = rng.randrange(10)
            if kind == 0:
                tensors[name] = tensors[name].reshape(rng.choice(((16,), (2, 2, 4), (16, 1), (4, 4))))
            elif kind == 1:
                tensors[name] = tensors[name].to(rng.choice((torch.int8, torch.float64, torch.float8_e4m3fn)))
            elif kind == 2:
                tensors[name.replace("q_proj", rng.choice(("", "..", "x.y", "q_proj.weight", "("))) + "x"] = (
                    tensors.pop(name)
                )
        data = save(tensors)
        (own / "adapter_model.safetensors").write_bytes(data if rng.randrange(8) else change_bytes(rng, data))

    def use(self, folder: Path) -> None:
        recipe = f"merge_method: passthrough\nmodels: [{{model: {json.dumps(f'{folder}/base+{folder}/adapter')}}}]\n"
        read_adapter(str(folder / "adapter"))
        plan_and_run(recipe, folder)


class Recipe(Target):
    """Recipes."""

    def write(self, rng: Random, folder: Path) -> None:
        write_model(folder / "base")
        write_model(folder / "one", 2.0)
        tree = {k: v for k, v in RECIPE.items() if k in ("merge_method", "models") or rng.randrange(2)}
        for _ in range(rng.randrange(4)):
            tree = change_tree(rng, tree)
        text = yaml.dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")
        kind = rng.randrange(10)
        if kind == 0:
            text = change_bytes(rng, text)
        elif kind == 1:
            text += b"a: &a [x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n"
        elif kind == 2:
            text = b"{" * rng.choice((3, 5000)) + text
        (folder / "recipe.yml").write_bytes(text)

    def use(self, folder: Path) -> None:
        before = os.getcwd()
        os.chdir(folder)
        try:
            plan_and_run("recipe.yml", folder)
        finally:
            os.chdir(before)
