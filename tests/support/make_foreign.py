"""Writes ``tests/data/foreign``: merges that mergekit and PEFT made, with their recipes and inputs.

    python tests/support/make_foreign.py tests/data/foreign

It needs mergekit and peft, which the tests do not. One family of tiny models serves all merges.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_tensors, save_model

SIZE = {"layers": 1, "hidden": 32, "inner": 48, "vocab": 64}
MODELS = """
models:
- {model: one, parameters: {weight: 0.6, density: 0.5}}
- {model: two, parameters: {weight: 0.3, density: 0.5}}
"""
RECIPES = {
    "linear": "merge_method: linear" + MODELS + "dtype: bfloat16\n",
    "task_arithmetic": "merge_method: task_arithmetic\nbase_model: base" + MODELS + "dtype: bfloat16\n",
    "ties": "merge_method: ties\nbase_model: base" + MODELS + "dtype: bfloat16\n",
    "ties_float32": "merge_method: ties\nbase_model: base" + MODELS + "dtype: float32\nout_dtype: bfloat16\n",
    "slerp": "merge_method: slerp\nbase_model: one\nmodels: [{model: one}, {model: two}]\n"
    "parameters: {t: 0.4}\ndtype: bfloat16\n",
    "dare_ties": "merge_method: dare_ties\nbase_model: base" + MODELS + "dtype: bfloat16\n",
    "passthrough": "merge_method: passthrough\nslices:\n- sources: [{model: one, layer_range: [0, 1]}]\n"
    "- sources: [{model: two, layer_range: [0, 1]}]\ndtype: bfloat16\n",
}


def write_inputs(folder: Path) -> None:
    base = make_tensors(0, **SIZE)
    save_model(folder / "base", base)
    for seed, name in enumerate(("one", "two"), start=1):
        save_model(folder / name, make_tensors(seed, base=base))


def write_adapter(folder: Path) -> None:
    """Train nothing: a LoRA adapter of ``base`` with random factors, saved by PEFT, and what it merges to."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "down_proj"]))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    adapted.save_pretrained(folder / "adapter")
    adapted.merge_and_unload().save_pretrained(folder / "unloaded")


def keep(target: Path, source: Path) -> None:
    """Keep the weights and the config of a model, in one file."""
    target.mkdir(parents=True, exist_ok=True)
    tensors = {k: t for p in sorted(source.glob("*.safetensors")) for k, t in load_file(p).items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(source / "config.json", target)


def main(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_inputs(work)
        write_adapter(work)
        for model in ("base", "one", "two", "unloaded"):
            keep(out / model, work / model)
        (out / "adapter").mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(work / "adapter" / file, out / "adapter")
        for method, recipe in RECIPES.items():
            (work / "recipe.yml").write_text(recipe)
            command = [sys.executable, "-m", "mergekit.scripts.run_yaml", "recipe.yml", f"merged-{method}"]
            subprocess.run([*command, "--no-copy-tokenizer", "--no-write-model-card"], cwd=work, check=True)
            keep(out / f"merged-{method}", work / f"merged-{method}")
            (out / f"{method}.yml").write_text(recipe)
    (out / "unloaded.yml").write_text("merge_method: passthrough\nmodels: [{model: base+adapter}]\n")
    versions = {package: version(package) for package in ("mergekit", "peft", "transformers", "torch")}
    (out / "made_by.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
