"""Merges of quantized models: what a merge of the decoded models gives, within the budget, on every path."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch
from checkpoint_files import write_adapter
from mirrors import compute_on_mirrors
from quantizers import float8_blocks, gptq, nvfp4, quantize_model
from safetensors.torch import save_file
from tiny_merges import assert_same_tensors, expected, make_merge, outputs_of, same_files
from tiny_models import make_tensors, save_model

from fastmerge.checkpoint import open_checkpoint
from fastmerge.dtypes import bfloat16, float16, float32
from fastmerge.engine import RunOptions, run, verify
from fastmerge.engine.checksums import BLOCK
from fastmerge.errors import BudgetError, CheckpointError, InvalidInput
from fastmerge.plan import make_plan
from fastmerge.recipe import load

# Wide enough that matrices are cut into chunks, with rows that neither blocks nor chunks divide.
WIDE = {"hidden": 192, "inner": 480, "vocab": 320, "layers": 2}
CONFIGS = {
    float8_blocks: {"quant_method": "fp8", "weight_block_size": [128, 128]},
    nvfp4: {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
    gptq: {"quant_method": "gptq", "bits": 4},
}


def quantize(folder, quantizer, **more) -> None:
    """Replace the model in ``folder`` by its quantized self."""
    stored = quantize_model(outputs_of(folder), quantizer)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"quantization_config": CONFIGS[quantizer]} | more
    (folder / "config.json").write_text(json.dumps(config))


@contextlib.contextmanager
def one_thread():
    """The last bits of a decomposition depend on the threads; the engine's workers have one each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("quantizer", CONFIGS, ids=lambda q: q.__name__)
@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "model_stock", "task_arithmetic_sb"])
def test_bits_are_those_of_the_decoded_models(tmp_path, quantizer, method):
    merge = make_merge(tmp_path, method, **WIDE)
    quantize(tmp_path / "model1", quantizer)
    plan = merge.plan()
    with one_thread():
        wanted = expected(plan)
    run(plan, merge.out, RunOptions(chunk=BLOCK))
    assert_same_tensors(outputs_of(merge.out), wanted)
    assert {output.dtype for output in plan.outputs} == {bfloat16}
    assert "quantization_config" not in json.loads((merge.out / "config.json").read_text())
    assert any("model1 is quantized" in note for note in plan.notes)
    assert verify(merge.out).ok


@pytest.mark.parametrize("quantizer", [float8_blocks, gptq], ids=lambda q: q.__name__)
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_devices_and_small_budgets_change_no_byte(tmp_path, monkeypatch, quantizer, method):
    merge = make_merge(tmp_path, method, **WIDE)
    for model in ("base", "model0"):
        quantize(tmp_path / model, quantizer)
    plan = merge.plan()
    run(plan, tmp_path / "roomy")
    with pytest.raises(BudgetError, match=r"at least \d+ \(--ram\)") as caught:
        run(plan, merge.out, RunOptions(chunk=BLOCK, threads=1, ram=1))
    least = int(str(caught.value).split("at least ")[1].split()[0])
    run(plan, merge.out, RunOptions(chunk=BLOCK, threads=1, ram=least))
    assert same_files(merge.out, tmp_path / "roomy")
    compute_on_mirrors(monkeypatch)
    run(plan, tmp_path / "there", RunOptions(chunk=BLOCK, vram=64 << 20))
    assert same_files(tmp_path / "there", tmp_path / "roomy")


def test_adapter_on_a_quantized_base(tmp_path):
    merge = make_merge(tmp_path, "ties", **WIDE)
    quantize(tmp_path / "model1", nvfp4)
    write_adapter(tmp_path / "adapter", {"model.layers.0.mlp.down_proj": (192, 480)}, rank=4)
    merge.recipe = merge.recipe.replace(f"{tmp_path}/model1", f"{tmp_path}/model1+{tmp_path}/adapter")
    plan = merge.plan()
    (folded,) = [o for o in plan.outputs if any(t.adapters for t in o.inputs.every)]
    assert any(t.adapters and t.coded for t in folded.inputs.every)
    wanted = expected(plan)
    run(plan, merge.out, RunOptions(chunk=BLOCK))
    assert_same_tensors(outputs_of(merge.out), wanted)


def test_slices_of_a_quantized_model(tmp_path):
    base = make_tensors(0, **WIDE)
    save_model(tmp_path / "base", base)
    quantize(tmp_path / "base", gptq)
    recipe = f"""
merge_method: passthrough
slices:
- sources: [{{model: {tmp_path}/base, layer_range: [1, 2]}}]
- sources: [{{model: {tmp_path}/base, layer_range: [0, 2]}}]
"""
    plan = make_plan(load(recipe))
    run(plan, tmp_path / "out")
    assert_same_tensors(outputs_of(tmp_path / "out"), expected(plan))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 3


def test_dtype_of_the_recipe_and_tensors_that_are_not_quantized(tmp_path):
    merge = make_merge(tmp_path, "linear", **WIDE)
    for model in ("model0", "model1", "model2"):
        quantize(tmp_path / model, gptq)
        stored = outputs_of(tmp_path / model) | {"router.bias": torch.full((3,), 0.1)}
        save_file(stored, tmp_path / model / "model.safetensors", metadata={"format": "pt"})
    dtypes = {output.name: output.dtype for output in merge.plan().outputs}
    assert dtypes.pop("router.bias") == float32
    assert set(dtypes.values()) == {bfloat16}
    merge.recipe += "dtype: float16\n"
    assert {output.dtype for output in merge.plan().outputs} == {float16}


def test_stored_tensors_are_accounted_for(tmp_path):
    merge = make_merge(tmp_path, "linear", **WIDE)
    quantize(tmp_path / "model1", float8_blocks)
    stored = outputs_of(tmp_path / "model1")
    stored["model.layers.0.mlp.up_proj.input_scale"] = torch.tensor(0.5)
    save_file(stored, tmp_path / "model1" / "model.safetensors", metadata={"format": "pt"})
    plan = merge.plan()
    (dropped,) = plan.dropped
    assert dropped.name.endswith("input_scale") and "activations" in dropped.reason
    sizes = [file.nbytes for model in plan.models for file in model.files]
    headers = 8 * len(sizes) + sum(_header(model.folder) for model in plan.models)
    assert plan.bytes_read + headers + 4 == sum(sizes)
    assert run(plan, merge.out).bytes_read == plan.bytes_read


def _header(folder) -> int:
    with open(f"{folder}/model.safetensors", "rb") as file:
        return int.from_bytes(file.read(8), "little")


def test_settings_of_a_decoder_are_part_of_the_plan(tmp_path):
    merge = make_merge(tmp_path, "linear", **WIDE)
    quantize(tmp_path / "model1", gptq)
    before = merge.plan().digest
    config = json.loads((tmp_path / "model1" / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    (tmp_path / "model1" / "config.json").write_text(json.dumps(config))
    assert merge.plan().digest != before


def test_groups_that_do_not_exist_are_named(tmp_path):
    merge = make_merge(tmp_path, "linear", **WIDE)
    quantize(tmp_path / "model1", gptq)
    stored = outputs_of(tmp_path / "model1")
    stored["model.layers.1.mlp.up_proj.g_idx"][7] = 99
    save_file(stored, tmp_path / "model1" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight: g_idx names the groups 0 to 99"):
        run(merge.plan(), merge.out)
    assert not merge.out.exists()


def test_a_checkpoint_as_stored_is_not_decoded(tmp_path):
    save_model(tmp_path / "base", make_tensors(0, **WIDE))
    quantize(tmp_path / "base", nvfp4)
    assert "model.layers.0.mlp.up_proj.weight_packed" in open_checkpoint(str(tmp_path / "base")).tensors


def test_formats_that_are_not_read_are_named(tmp_path):
    merge = make_merge(tmp_path, "linear", **WIDE)
    quantize(tmp_path / "model1", gptq)
    config = json.loads((tmp_path / "model1" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "hqq"}
    (tmp_path / "model1" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInput, match="the weights are quantized by hqq"):
        merge.plan()
