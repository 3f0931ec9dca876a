"""Models without data, for plans of recipes as people wrote them: headers, configs, tokenizers, adapters."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from tiny_models import llama_shapes

from fastmerge.dtypes import DType, bfloat16, float32
from fastmerge.plan.layout import Sized, lay_out
from fastmerge.recipe import ModelRef, Recipe

SIZE = {"hidden": 8, "inner": 16, "heads": 2, "kv_heads": 1, "vocab": 32}


class StandIns:
    """Writes a folder for every model that a recipe names; weights are headers and holes."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._layers = 0

    def of(self, recipe: Recipe, layers: int, others: Collection[str] = ()) -> Recipe:
        """Return the recipe with every model in a folder of its own, but for results of ``others``."""
        self._layers = layers
        return recipe.with_models(lambda ref: ref if ref.path in others else self._placed(ref))

    def _placed(self, ref: ModelRef) -> ModelRef:
        lora = ref.lora and replace(ref.lora, path=str(self._adapter(ref.lora)))
        return replace(ref, folder=str(self._model(ref)), lora=lora)

    def _model(self, ref: ModelRef) -> Path:
        folder = self._folder / f"{ref.path}@{ref.revision}".replace("/", "_")
        if folder.exists():
            return folder
        folder.mkdir()
        config = {
            "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": self._layers,
            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 32, "torch_dtype": "bfloat16",
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        vocabulary = {"model": {"vocab": {f"t{i}": i for i in range(32)}}, "added_tokens": []}
        (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
        shapes = llama_shapes(layers=self._layers, **SIZE)
        _write(folder / "model.safetensors", shapes, bfloat16)
        return folder

    def _adapter(self, ref: ModelRef) -> Path:
        folder = self._folder / f"{ref.path}.lora".replace("/", "_")
        if not folder.exists():
            folder.mkdir()
            settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}
            (folder / "adapter_config.json").write_text(json.dumps(settings))
            name = "base_model.model.model.layers.0.mlp.up_proj"
            shapes = {f"{name}.lora_A.weight": (2, 8), f"{name}.lora_B.weight": (16, 2)}
            _write(folder / "adapter_model.safetensors", shapes, float32)
        return folder


def _write(path: Path, shapes: dict[str, tuple[int, ...]], dtype: DType) -> None:
    sizes = [Sized(name, dtype, shape, torch.Size(shape).numel() * dtype.itemsize) for name, shape in shapes.items()]
    (shard,), _, _ = lay_out(sizes, 1 << 40)
    with open(path, "wb") as file:
        file.write(shard.header)
        file.truncate(shard.nbytes)
