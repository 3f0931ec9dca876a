"""A kind of file that is fuzzed, and the tiny model that most of them are made of."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file

from fastmerge.engine import RunOptions, run
from fastmerge.plan import make_plan
from fastmerge.recipe import load

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 4, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "quantization_config": None,
    "layer_types": ["full_attention"], "text_config": {"num_hidden_layers": 1, "hidden_size": 8},
}  # fmt: skip


def tiny(scale: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "model.embed_tokens.weight": torch.full((4, 8), scale, dtype=torch.bfloat16),
        "model.layers.0.self_attn.q_proj.weight": torch.full((8, 8), scale, dtype=torch.bfloat16),
        "model.norm.weight": torch.ones(8, dtype=torch.bfloat16),
        "lm_head.weight": torch.full((4, 8), scale, dtype=torch.bfloat16),
    }


def write_model(folder: Path, scale: float = 1.0, weights: bool = True, config: bool = True) -> None:
    folder.mkdir(exist_ok=True)
    if weights:
        save_file(tiny(scale), folder / "model.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps(CONFIG))


def linear(*models: Path | str) -> str:
    lines = [f"- {{model: {json.dumps(str(model))}, parameters: {{weight: 1}}}}\n" for model in models]
    return "merge_method: linear\nmodels:\n" + "".join(lines)


def plan_and_run(recipe: str, folder: Path) -> None:
    plan = make_plan(load(recipe))
    run(plan, folder / "out", RunOptions(ram=256 << 20, threads=1))


class Target(ABC):
    """One kind of file."""

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    @abstractmethod
    def write(self, rng: Random, folder: Path) -> None:
        """Write the files of one case into an empty folder."""

    @abstractmethod
    def use(self, folder: Path) -> None:
        """Do with them what a user would. FastmergeError is right; every other error is a finding."""
