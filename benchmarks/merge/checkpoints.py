"""Llama-shaped checkpoints to merge: ``python -m benchmarks.merge.checkpoints FOLDER --shape llama-0.5b``.

Writes FOLDER/base and FOLDER/expert1 .. expert3 in the Hugging Face layout, block by block: memory stays below 1 GiB.
Weights are N(0, 0.02) in bfloat16, experts are the base plus N(0, 5e-4).
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

EXPERTS = 3
BLOCK = 16 << 20

# The smallest tokenizer that transformers, and so mergekit, loads.
TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"},
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama checkpoint; ``shards`` is the number of files."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool
    shards: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, in the order of the files."""
        kv = self.hidden // self.heads * self.kv_heads
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for i in range(self.layers):
            shapes |= {
                f"model.layers.{i}.input_layernorm.weight": (self.hidden,),
                f"model.layers.{i}.mlp.down_proj.weight": (self.hidden, self.inner),
                f"model.layers.{i}.mlp.gate_proj.weight": (self.inner, self.hidden),
                f"model.layers.{i}.mlp.up_proj.weight": (self.inner, self.hidden),
                f"model.layers.{i}.post_attention_layernorm.weight": (self.hidden,),
                f"model.layers.{i}.self_attn.k_proj.weight": (kv, self.hidden),
                f"model.layers.{i}.self_attn.o_proj.weight": (self.hidden, self.hidden),
                f"model.layers.{i}.self_attn.q_proj.weight": (self.hidden, self.hidden),
                f"model.layers.{i}.self_attn.v_proj.weight": (kv, self.hidden),
            }
        shapes["model.norm.weight"] = (self.hidden,)
        return shapes if self.tied else {**shapes, "lm_head.weight": (self.vocab, self.hidden)}

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensors().values())

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.hidden,
            "intermediate_size": self.inner, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "vocab_size": self.vocab, "tie_word_embeddings": self.tied,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "torch_dtype": "bfloat16",
        }  # fmt: skip


SHAPES = {
    "llama-0.5b": Shape(hidden=1536, inner=4096, layers=16, heads=12, kv_heads=12, vocab=32000, tied=False, shards=3),
    # Llama-3.2-1B.
    "llama-1b": Shape(hidden=2048, inner=8192, layers=16, heads=32, kv_heads=8, vocab=128256, tied=True, shards=1),
    # Almost no data: what is left is the cost per tensor, and with one layer the cost of starting.
    "llama-start": Shape(hidden=16, inner=32, layers=1, heads=2, kv_heads=2, vocab=64, tied=False, shards=1),
    # Twenty checkpoints of it are 0.6 GB.
    "llama-15m": Shape(hidden=384, inner=1024, layers=5, heads=6, kv_heads=6, vocab=8192, tied=False, shards=1),
    "llama-tiny": Shape(hidden=16, inner=32, layers=800, heads=2, kv_heads=2, vocab=64, tied=False, shards=1),
}


def model_names(experts: int = EXPERTS) -> list[str]:
    return ["base", *(f"expert{i + 1}" for i in range(experts))]


def make_checkpoints(folder: Path, shape: Shape, seed: int = 0, device: str = "cpu", experts: int = EXPERTS) -> None:
    """Write the base and the experts under ``folder``; random numbers are drawn on ``device``."""
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    folders = [folder / name for name in model_names(experts)]
    for model in folders:
        model.mkdir(parents=True)
        (model / "config.json").write_text(json.dumps(shape.config(), indent=2))
        (model / "tokenizer.json").write_text(json.dumps(TOKENIZER))
        (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    for filename, tensors in _shards(folders, shape).items():
        files = [_start_file(model / filename, tensors) for model in folders]
        for name, size in tensors.items():
            for start in range(0, math.prod(size), BLOCK):
                elements = min(BLOCK, math.prod(size) - start)
                noise = [torch.randn(elements, generator=generator, device=device) for _ in files]
                base = (0.02 * noise[0] + name.endswith("norm.weight")).bfloat16()
                _write(files[0], base)
                for file, delta in zip(files[1:], noise[1:], strict=True):
                    _write(file, delta.mul_(5e-4).add_(base).bfloat16())
        for file in files:
            file.close()


def _shards(folders: list[Path], shape: Shape) -> dict[str, dict[str, tuple[int, ...]]]:
    """Divide the tensors, in order, into files of about equal size; write the index where there are several."""
    tensors = shape.tensors()
    if shape.shards == 1:
        return {"model.safetensors": tensors}
    shards: dict[str, dict[str, tuple[int, ...]]] = {
        f"model-{i + 1:05d}-of-{shape.shards:05d}.safetensors": {} for i in range(shape.shards)
    }
    done = 0
    for name, size in tensors.items():
        list(shards.values())[done * shape.shards // shape.parameters][name] = size
        done += math.prod(size)
    weight_map = {name: filename for filename, part in shards.items() for name in part}
    index = {"metadata": {"total_size": 2 * shape.parameters}, "weight_map": weight_map}
    for model in folders:
        (model / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return shards


def _start_file(path: Path, tensors: dict[str, tuple[int, ...]]) -> BinaryIO:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, size in tensors.items():
        end = offset + 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file = path.open("wb")
    file.write(len(text).to_bytes(8, "little") + text)
    return file


def _write(file: BinaryIO, block) -> None:
    import torch

    file.write(memoryview(block.cpu().view(torch.int16).numpy()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merge.checkpoints", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-0.5b")
    parser.add_argument("--experts", type=int, default=EXPERTS)
    options = parser.parse_args()
    make_checkpoints(options.folder, SHAPES[options.shape], experts=options.experts)


if __name__ == "__main__":
    main()
