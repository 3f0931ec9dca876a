"""Models: their weights, indexes and configs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random

from safetensors.torch import save, save_file

from fastmerge.checkpoint import open_checkpoint
from fastmerge.checkpoint.quantized import decoded
from fastmerge.plan import make_plan
from fastmerge.recipe import load

from ..mutations import change_bytes, json_text
from .target import CONFIG, Target, linear, tiny, write_model


class Safetensors(Target):
    """Headers of safetensors files."""

    def write(self, rng: Random, folder: Path) -> None:
        data = save(tiny())
        length = int.from_bytes(data[:8], "little")
        header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
        if not rng.randrange(4):
            (folder / "model.safetensors").write_bytes(change_bytes(rng, data))
            return
        text = json_text(rng, header)
        said = len(text) if rng.randrange(6) else rng.choice((0, 1, len(text) + 1, 2**40, 2**63, 2**64 - 1))
        (folder / "model.safetensors").write_bytes(said.to_bytes(8, "little") + text + rest)

    def use(self, folder: Path) -> None:
        decoded(open_checkpoint(str(folder)))


class Index(Target):
    """Indexes of shards, and what lies under the names of the shards."""

    def write(self, rng: Random, folder: Path) -> None:
        names = list(tiny())
        shards = {"a.safetensors": names[:2], "b.safetensors": names[2:]}
        for file, own in shards.items():
            save_file({name: tiny()[name] for name in own}, folder / file)
        weight_map = {name: file for file, own in shards.items() for name in own}
        tree = {"metadata": {"total_size": 100}, "weight_map": weight_map}
        for name in list(weight_map):
            if not rng.randrange(6):
                weight_map[name] = rng.choice(
                    ("../outside/model.safetensors", "/etc/passwd", "c.safetensors", ".", "", "a.safetensors/", "link")
                )
        (folder / "model.safetensors.index.json").write_bytes(json_text(rng, tree))
        kind = rng.randrange(8)
        if kind == 0:
            os.mkfifo(folder / "c.safetensors")
        elif kind == 1:
            (folder / "c.safetensors").mkdir()
        elif kind == 2:
            (folder / "c.safetensors").symlink_to(rng.choice(("c.safetensors", "/dev/zero", "nowhere", "/")))
        elif kind == 3:
            (folder / "link").symlink_to("/dev/stdin")

    def use(self, folder: Path) -> None:
        decoded(open_checkpoint(str(folder)))


class Config(Target):
    """Configs, and other small files of a model."""

    def write(self, rng: Random, folder: Path) -> None:
        write_model(folder / "base")
        own = folder / "own"
        write_model(own, 2.0, config=False)
        tree = dict(CONFIG)
        if not rng.randrange(3):
            tree["quantization_config"] = {
                "quant_method": rng.choice(("fp8", "gptq", "awq", "compressed-tensors", "bitsandbytes", "x")),
                "weight_block_size": [128, 128], "bits": 4, "config_groups": {"g": {"weights": {"num_bits": 4}}},
            }  # fmt: skip
        (own / "config.json").write_bytes(json_text(rng, tree))
        small = {
            "generation_config.json": {"eos_token_id": 1},
            "tokenizer_config.json": {
                "chat_template": "{{ messages }}",
                "added_tokens_decoder": {"3": {"content": "x"}},
            },
            "tokenizer.json": {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 3, "content": "x"}]},
            "special_tokens_map.json": {"eos_token": "</s>"},
            "modules.json": [{"path": "1_Pooling", "type": "x"}],
        }
        for name, content in small.items():
            if not rng.randrange(3):
                (own / name).write_bytes(json_text(rng, content))
        kind = rng.randrange(10)
        if kind == 0:
            (own / "chat_template.jinja").symlink_to(rng.choice(("/etc/hostname", "../../secret", "/dev/zero")))
        elif kind == 1:
            os.mkfifo(own / "vocab.txt")
        elif kind == 2:
            (own / "tokenizer.model").write_bytes(change_bytes(rng, b"\n\x07\n\x01a\x15\0\0\0\0" * 3))
        elif kind == 3:
            (own / "README.md").write_bytes(change_bytes(rng, b"---\nlicense: mit\n---\n# A model\n"))

    def use(self, folder: Path) -> None:
        recipe = linear(folder / "own", folder / "base")
        make_plan(load(recipe + "tokenizer_source: base\nchat_template: auto\n"), allow_mixed_types=True)
