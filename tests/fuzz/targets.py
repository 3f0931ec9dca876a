"""What is fuzzed: each target writes files into a folder, and then does what a command would do with them."""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
import zipfile
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from random import Random

import torch
import yaml
from safetensors.torch import save, save_file

from fastmerge.checkpoint import open_checkpoint, read_adapter
from fastmerge.checkpoint.gguf.reading import open_gguf
from fastmerge.checkpoint.quantized import decoded
from fastmerge.engine import RunOptions, run
from fastmerge.plan import make_plan
from fastmerge.recipe import load

from .gguf_bytes import gguf_bytes
from .mutations import change_bytes, change_tree, json_text

DISTRIBUTED = Path(__file__).resolve().parents[1] / "data" / "distributed"
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 4, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "quantization_config": None,
    "layer_types": ["full_attention"], "text_config": {"num_hidden_layers": 1, "hidden_size": 8},
}  # fmt: skip
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


class Bin(Target):
    """Archives of torch.save."""

    @cached_property
    def _archive(self) -> bytes:
        buffer = io.BytesIO()
        torch.save({name: tensor[:2].clone() for name, tensor in tiny().items()}, buffer)
        return buffer.getvalue()

    def write(self, rng: Random, folder: Path) -> None:
        path = folder / "pytorch_model.bin"
        if not rng.randrange(2):
            path.write_bytes(change_bytes(rng, self._archive))
            return
        with zipfile.ZipFile(io.BytesIO(self._archive)) as archive:
            members = {member.filename: archive.read(member) for member in archive.infolist()}
        pickled = next(name for name in members if name.endswith("data.pkl"))
        members[pickled] = (
            change_bytes(rng, members[pickled]) if rng.randrange(2) else self._pickle(rng, members[pickled])
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of names that are there twice, which is meant
            with zipfile.ZipFile(path, "w", rng.choice((zipfile.ZIP_STORED,) * 7 + (zipfile.ZIP_DEFLATED,))) as archive:
                for name, data in members.items():
                    archive.writestr(rng.choice((name,) * 12 + ("../x", "/x", name + "x")), data)

    def _pickle(self, rng: Random, right: bytes) -> bytes:
        """Return a pickle that calls what a loader of weights may call, or what it must not."""
        call = rng.choice((
            ("builtins", "bytearray", (rng.choice((1, 10**9, 2**40)),)), ("collections", "OrderedDict", ()),
            ("torch._utils", "_rebuild_tensor_v2", (None, 0, (2,), (1,), False, None)), ("os", "system", ("true",)),
            ("torch", "Size", ((2**40, 2**40),)), ("torch", "device", ("cuda:9",)), ("builtins", "eval", ("1",)),
            ("torch._utils", "_rebuild_meta_tensor_no_storage", (torch.float32, (2**20, 2**20), (1, 1), False)),
            ("torch.nn.parameter", "Parameter", (rng.choice((None, 3)),)), ("builtins", "set", ([1],)),
            ("_codecs", "encode", ("a" * 9, "latin1")), ("collections", "Counter", ({"a": 1},)),
        ))  # fmt: skip
        module, function, arguments = call
        body = pickle.dumps(arguments, 2)[2:-1]
        text = b"\x80\x02}q\x00X\x01\x00\x00\x00wc" + f"{module}\n{function}\n".encode() + body + b"Rs."
        return text if rng.randrange(3) else change_bytes(rng, text)

    def use(self, folder: Path) -> None:
        decoded(open_checkpoint(str(folder)))


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


class Distributed(Target):
    """Folders of torch.distributed.checkpoint: their metadata, and the archives in their files."""

    @cached_property
    def _files(self) -> dict[str, dict[str, bytes]]:
        kinds = ("step-1", "hf-2")
        return {kind: {path.name: path.read_bytes() for path in (DISTRIBUTED / kind).iterdir()} for kind in kinds}

    def write(self, rng: Random, folder: Path) -> None:
        files = dict(self._files[rng.choice(("step-1", "step-1", "step-1", "hf-2"))])
        for name in rng.sample(sorted(files), rng.choice((1, 1, 2))):
            if rng.randrange(12) == 0:
                del files[name]
            elif name == ".metadata" or rng.randrange(3):
                files[name] = self._changed(rng, files[name])
        if ".metadata" in files and not rng.randrange(6):
            files[".metadata"] = self._calls(rng)
        for name, data in files.items():
            (folder / name).write_bytes(data)

    @staticmethod
    def _changed(rng: Random, data: bytes) -> bytes:
        kind = rng.randrange(3)
        if kind == 0:
            return change_bytes(rng, data)
        # A number or a name of a pickle becomes another one of its length.
        swaps = (
            (b"__0_0.distcp", rng.choice((b"__1_0.distcp", b"../../a/.../", b"/etc/passwd\0"))), (b"K\x06", b"K\xff"),
            (b"K\x02", b"K\x01"), (b"bfloat16", b"float8_e"), (b"Metadata", b"metadata"),
            (b"_StorageInfo", b"_StorageInfx"), (b"torch.serialization", b"torch.serializatiom"),
            (b"BFloat16Storage", b"UntypedxStorage"), (b"HalfStorage", b"LongStorage"),
            (b"saved_offsets", b"saved_offsetz"), (b"J\x00", b"J\xff"),
        )  # fmt: skip
        for _ in range(kind):
            old, new = rng.choice(swaps)
            data = data.replace(old, new, rng.choice((1, 3, -1)))
        return data

    @staticmethod
    def _calls(rng: Random) -> bytes:
        """Return a pickle that calls what it must not, or takes memory or time by itself."""
        module, function, arguments = rng.choice((
            ("builtins", "bytearray", (2**40,)), ("os", "system", ("true",)), ("torch", "Size", (("a",) * 9,)),
            ("torch", "load", ("x",)), ("torch.distributed.checkpoint.metadata", "Metadata", ()),
            ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING", (0, 1)),
            ("collections", "OrderedDict", (1,)),
        ))  # fmt: skip
        call = f"{module}\n{function}\n".encode() + pickle.dumps(arguments, 2)[2:-1] + b"R."
        bomb = b"\x80\x04)" + b"\x94h\x00h\x00\x86" * 60 + b"}\x94h\x01K\x01s."
        memo = b"\x80\x02N" + b"r\xff\xff\xff\x7f."
        build = b"\x80\x02ctorch\nSize\n}X\x04\x00\x00\x00makeK\x01sb."
        return rng.choice((b"\x80\x02c" + call, b"\x80\x02c" + call, bomb, memo, build))

    def use(self, folder: Path) -> None:
        if os.listdir(folder):
            plan_and_run(f"merge_method: passthrough\nmodels: [{{model: {json.dumps(str(folder))}}}]\n", folder)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (Safetensors(), Index(), Config(), Adapter(), Bin(), Recipe(), Quantized(), Gguf(), Distributed())
}
