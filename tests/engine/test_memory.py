"""The memory budget is obeyed: the peak of the whole process, measured from outside the engine."""

from __future__ import annotations

import functools
import json
import platform
import subprocess
import sys
from functools import partial

import pytest
import torch
from checkpoint_files import write_adapter
from quantizers import float8_blocks, gptq, nvfp4, quantize_model
from safetensors.torch import load_file, save_file
from tiny_merges import Merge, make_merge, merge_of
from vocabularies import tokenizer_json

from fastmerge.engine.needs import outside_bytes
from fastmerge.engine.sizing import Budget, divide
from fastmerge.errors import BudgetError
from fastmerge.kernels import mask_words, why_no_cpu_extension

QUANTIZERS = {
    "fp8": (float8_blocks, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "nvfp4": (nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32}),
}
SHIFT = 77


def prepare(merge, kind: str, rank: int = 64) -> None:
    """Change the models of a merge: quantize them, or add adapters, or give them vocabularies in other orders."""
    folder = merge.out.parent
    for number, place in enumerate(sorted(folder.iterdir())):
        path = place / "model.safetensors"
        config = json.loads((place / "config.json").read_text())
        if kind in QUANTIZERS:
            quantize, config["quantization_config"] = QUANTIZERS[kind]
            save_file(quantize_model(load_file(path), quantize), path)
            (place / "config.json").write_text(json.dumps(config))
        if kind in ("tokens", "tokens+adapters"):
            rows, turn = config["vocab_size"], SHIFT * number
            tokens = [f"t{(i + turn) % rows}" for i in range(rows)]
            tokens[tokens.index("t0")] = "<unk>"
            (place / "tokenizer.json").write_text(tokenizer_json(tokens))
        if kind == "tokens+adapters" and place.name != "base":
            write_embedding_adapter(folder / f"lora-{place.name}", config, rank)
            merge.recipe = merge.recipe.replace(f"model: {place}\n", f"model: {place}+{folder}/lora-{place.name}\n")
        if kind == "adapters" and place.name != "base":
            modules = {
                f"model.layers.0.{part}_proj": (512, 512)
                for part in ("self_attn.q", "self_attn.o", "mlp.up", "mlp.down")
            }
            write_adapter(folder / f"lora-{place.name}", modules, rank=rank)
            merge.recipe = merge.recipe.replace(f"model: {place}\n", f"model: {place}+{folder}/lora-{place.name}\n")
    if "tokens" in kind:
        merge.recipe += "tokenizer_source: union\n"


def write_embedding_adapter(folder, config, rank):
    folder.mkdir()
    name = "base_model.model.model.embed_tokens.lora_embedding_"
    factors = {"A": torch.ones(rank, config["vocab_size"]), "B": torch.ones(config["hidden_size"], rank)}
    save_file({name + key: factor for key, factor in factors.items()}, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["embed_tokens"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


RUN = """
import sys
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:")) / 1024
if sys.argv[5]:
    import torch
from fastmerge.engine import RunOptions, run
from fastmerge.plan import make_plan
from fastmerge.recipe import load
before = peak()
plan = make_plan(load(sys.argv[1]))
report = run(plan, sys.argv[2], RunOptions(ram=int(sys.argv[3]) << 20, backend=sys.argv[4]))
assert bool(sys.argv[5]) == ("torch" in sys.modules)
print(before, peak(), report.bytes_read / plan.bytes_read)
"""


compiled = partial(pytest.param, marks=pytest.mark.compiled)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A function that returns a folder with models of a vocabulary, made once."""

    @functools.cache
    def folder(vocab: int):
        return make_merge(tmp_path_factory.mktemp("models"), vocab=vocab, hidden=512, inner=512, layers=1).out.parent

    return folder


def measured(merge, budget: int, backend: str = "auto", loads_torch: bool = True) -> tuple[float, float, float]:
    """Return the peaks of the process before and after a run, in MiB, and how often the inputs were read.

    Before are the interpreter and the packages, torch where the merge loads it.
    """
    arguments = [merge.recipe, merge.out, str(budget), backend, "torch" if loads_torch else ""]
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, peak, reads = map(float, done.stdout.split())
    print(f"at first {before:.0f} MiB, peak {peak:.0f} MiB, inputs read {reads:.2f} times")
    return before, peak, reads


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "backend", "budget", "vocab"),
    [
        ("linear", "auto", 24, 16384),
        ("ties", "auto", 24, 16384),  # the embedding, 16 MB in each of four models, does not fit
        compiled("ties", "auto", 160, 16384),  # it fits
        ("ties", "reference", 64, 2048),
        compiled("dare_ties", "auto", 160, 16384),  # it fits, with what was drawn of it
        compiled("della", "auto", 160, 16384),  # whole tensors and their masks
        ("della", "reference", 128, 1024),
        compiled(
            "tsvm", "auto", 64, 2048
        ),  # seven matrices of 512 x 512, whole, with the work space of their decompositions
        compiled("knots", "auto", 64, 2048),
        compiled("ties+boost", "auto", 64, 2048),
    ],
)
def test_peak_memory_stays_within_the_budget(folder_of, tmp_path, method, backend, budget, vocab):
    method, _, block = method.partition("+")
    recipe = merge_of(folder_of(vocab), method).recipe + (f"{block}: {{}}\n" if block else "")
    streams = method in ("linear", "ties", "dare_ties", "della") and not block and backend == "auto"
    loads_torch = not streams or why_no_cpu_extension() is not None
    before, peak, reads = measured(Merge(recipe, tmp_path / "out"), budget, backend, loads_torch)
    assert peak <= before + budget + 64
    if (method, backend, vocab) == ("ties", "auto", 16384):
        assert (reads > 1) == (budget == 24)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "method", "budget", "vocab"),
    [
        ("fp8", "ties", 48, 1024),
        ("nvfp4", "linear", 48, 1024),
        ("gptq", "ties", 48, 1024),
        ("adapters", "ties", 48, 1024),
        ("tokens", "ties", 48, 16384),
        ("tokens+adapters", "task_arithmetic", 64, 16384),
    ],
)
def test_peak_memory_of_inputs_that_are_made(tmp_path, kind, method, budget, vocab):
    """Decoded, with adapters, by token; results are checked for NaN all the while."""
    merge = make_merge(tmp_path, method, vocab=vocab, hidden=512, inner=512, layers=1)
    prepare(merge, kind)
    before, peak, _ = measured(merge, budget)
    assert peak <= before + budget + 64


def test_bits_of_random_rules_fit_beside_the_tensors_that_are_held():
    for inputs in (2, 4, 17):
        assert 4 * mask_words(1 << 20) * (inputs - 1) <= outside_bytes(inputs, "cpu") * (1 << 20)


def test_adapters_of_gathered_embeddings_count(tmp_path):
    merge = make_merge(tmp_path, "task_arithmetic", vocab=64, hidden=8, inner=8, layers=1, heads=2, kv_heads=1)
    prepare(merge, "tokens+adapters", rank=8192)
    outputs = merge.plan().outputs
    held = 3 * (64 + 8) * 8192 * 12  # three models; A and B of rank 8192
    with pytest.raises(BudgetError, match=f"; {held} of them hold adapters and codes of embeddings"):
        divide(outputs, Budget(held), workers=1)
    with pytest.raises(BudgetError) as caught:
        divide(outputs, Budget(1), workers=1)
    least = int(str(caught.value).partition("at least ")[2].partition(" ")[0])
    assert divide(outputs, Budget(least), workers=1).arena <= least - held
    with pytest.raises(BudgetError):
        divide(outputs, Budget(least - 1), workers=1)


FAULTS = """
import resource
import numpy as np
from fastmerge.engine.working import _keep_freed_memory
from fastmerge.steps.blocks import STRIP_BLOCK

block = np.ones(STRIP_BLOCK, np.float32)

def faults():
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(8):
        (-block) * (block + block) - block * block
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

usual = faults()
_keep_freed_memory()
faults()
print(usual, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of the C library of GNU")
def test_blocks_of_numpy_are_the_memory_of_those_before():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    usual, kept = map(int, done.stdout.split())
    assert kept < usual / 100
