"""Weights that are stored as codes: quantized models, and GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file

from fastmerge.checkpoint.gguf.reading import open_gguf

from ..gguf_bytes import gguf_bytes
from ..mutations import json_text
from .target import CONFIG, Target, plan_and_run, tiny, write_model


class Quantized(Target):
    """Stored tensors of quantized models, and their values."""

    KINDS = (
        {"weight": ("float8_e4m3fn", (6, 8)), "weight_scale_inv": ("float32", (1, 1))},
        {"weight_packed": ("int32", (6, 1)), "weight_scale": ("bfloat16", (6, 1)), "weight_shape": ("int64", (2,)),
         "weight_zero_point": ("int32", (1, 1)), "weight_g_idx": ("int32", (8,))},
        {"weight_packed": ("uint8", (6, 8)), "weight_scale": ("float8_e4m3fn", (6, 1)),
         "weight_global_scale": ("float32", (1,))},
        {"weight": ("uint8", (6, 8)), "weight_scale": ("float8_e4m3fn", (6, 1)), "weight_scale_2": ("float32", ())},
        {"qweight": ("int32", (1, 8)), "qzeros": ("int32", (1, 1)), "scales": ("float16", (1, 8)),
         "g_idx": ("int32", (8,))},
        {"qweight": ("int32", (8, 1)), "qzeros": ("int32", (1, 1)), "scales": ("float16", (1, 8))},
        {"weight": ("uint8", (24, 1)), "weight.absmax": ("float32", (1,)), "weight.quant_map": ("float32", (16,)),
         "weight.quant_state.bitsandbytes__nf4": ("uint8", (60,))},
        {"weight": ("int8", (6, 8)), "SCB": ("float32", (6,)), "weight_format": ("uint8", ())},
        {"weight": ("uint32", (6, 4)), "scales": ("bfloat16", (6, 1)), "biases": ("bfloat16", (6, 1))},
        {"w_blocks": ("uint8", (2, 4, 1, 16)), "w_scales": ("uint8", (2, 4, 1))},
    )  # fmt: skip
    DTYPES = ("float32", "bfloat16", "int32", "uint8", "int8", "float8_e4m3fn", "int64", "bool")

    def write(self, rng: Random, folder: Path) -> None:
        write_model(folder / "base")
        tensors = tiny()
        stored = dict(rng.choice(self.KINDS))
        for name in list(stored):
            kind = rng.randrange(14)
            dtype, shape = stored[name]
            if kind == 0:
                del stored[name]
            elif kind == 1:
                stored[name] = rng.choice(self.DTYPES), shape
            elif kind == 2:
                changed = [max(0, extent + rng.choice((-1, 1, 3))) for extent in shape]
                stored[name] = dtype, rng.choice((changed, [*shape, 1], shape[1:], [1, *shape]))
        for name, (dtype, shape) in stored.items():
            values = torch.randint(0, 256, (*shape, getattr(torch, dtype).itemsize), dtype=torch.uint8,
                                   generator=torch.Generator().manual_seed(rng.randrange(1 << 30)))  # fmt: skip
            tensors[f"model.layers.0.m.{name}"] = values.view(getattr(torch, dtype)).reshape(tuple(shape))
        state = "model.layers.0.m.weight.quant_state.bitsandbytes__nf4"
        if state in tensors:
            text = json_text(rng, {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [6, 8]})
            tensors[state] = torch.tensor(list(text), dtype=torch.uint8)
        shape_name = "model.layers.0.m.weight_shape"
        if shape_name in tensors and rng.randrange(3):
            tensors[shape_name] = torch.tensor([6, rng.choice((8, 8, 7, 0, -1, 2**40))])
        config = {**CONFIG, "quantization_config": {"bits": 4, "group_size": 8, "quant_method": rng.choice(
            ("", "gptq", "awq", "compressed-tensors", "bitsandbytes", "fp8", "mlx"))}}  # fmt: skip
        own = folder / "own"
        own.mkdir()
        save_file(tensors, own / "model.safetensors")
        (own / "config.json").write_bytes(json_text(rng, config))

    def use(self, folder: Path) -> None:
        plan_and_run(f"merge_method: passthrough\nmodels: [{{model: {folder}/own}}]\n", folder)


class Gguf(Target):
    """Headers, lists and places of tensors of GGUF files, their configs and their values."""

    def write(self, rng: Random, folder: Path) -> None:
        name = rng.choice(
            ("m.gguf",) * 30 + ("m-00001-of-00002.gguf", "m-00001-of-00001.gguf", "m-00000-of-00000.gguf")
        )
        (folder / name).write_bytes(gguf_bytes(rng))
        if not rng.randrange(8):
            (folder / "m-00002-of-00002.gguf").write_bytes(gguf_bytes(rng))
        if not rng.randrange(6):
            (folder / "config.json").write_bytes(json_text(rng, CONFIG))

    def use(self, folder: Path) -> None:
        path = sorted(folder.glob("*.gguf"))[-1]
        open_gguf(str(path))
        plan_and_run(f"merge_method: passthrough\nmodels: [{{model: {json.dumps(str(path))}}}]\n", folder)
