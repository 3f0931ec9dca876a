"""Plans of ordinary recipes: every input tensor has its place, values are those of the recipe, outputs load."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace

import pytest
import torch
from checkpoint_files import read_entry
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import make_tensors, save_model

from fastmerge.checkpoint import open_checkpoint
from fastmerge.dtypes import ALL
from fastmerge.engine.forecast import forecast
from fastmerge.errors import BudgetError

TIES = """
merge_method: ties
base_model: base
models:
  - {model: a, parameters: {weight: 0.5, density: [0.2, 0.8]}}
  - {model: b, parameters: {weight: [{filter: mlp, value: 0.25}, {value: 1}]}}
parameters: {normalize: false}
seed: 7
"""

LINEAR = """
merge_method: linear
models:
  - {model: a, parameters: {weight: 1}}
  - {model: b, parameters: {weight: 2}}
"""


def by_name(plan):
    return {output.name: output for output in plan.outputs}


def write_shards(plan, folder):
    """Write the planned files with a recognizable byte per tensor, as an engine would."""
    for shard in plan.shards:
        (folder / shard.filename).write_bytes(shard.header.ljust(shard.nbytes, b"\0"))
    for i, output in enumerate(plan.outputs):
        with open(folder / plan.shards[output.shard].filename, "r+b") as file:
            file.seek(output.offset)
            file.write(bytes([i % 256]) * output.nbytes)
    if plan.index:
        (folder / "model.safetensors.index.json").write_text(plan.index)


def test_inputs_and_values(family, plan_of):
    plan = plan_of(TIES)
    assert (plan.method, plan.semantics, plan.seed) == ("ties", "mergekit", 7)
    assert [model.reference for model in plan.models] == ["base", "a", "b"]
    outputs = by_name(plan)
    assert outputs.keys() == family.keys()
    for name, output in outputs.items():
        assert output.inputs.base.model == 0 and [t.model for t in output.inputs.tensors] == [1, 2]
        assert {t.name for t in output.inputs.every} == {name}
        assert torch.equal(read_entry(output.inputs.base), family[name])
        assert output.group.name == name and output.group.models == 2 and output.group.seed == 7
        assert output.group["normalize"] is False
        assert output.group["weight"] == (0.5, 0.25 if "mlp" in name else 1)
    for layer in range(4):
        group = outputs[f"model.layers.{layer}.mlp.up_proj.weight"].group
        assert group["density"] == pytest.approx((0.2 + 0.6 * layer / 3, 1.0))
    for outside in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert outputs[outside].group["density"] == (0.2, 1.0)
    assert plan.dropped == () and plan.notes == ()


def test_outputs_follow_the_files_of_the_first_model(family, plan_of):
    first = open_checkpoint("base")
    assert [output.name for output in plan_of(TIES).outputs] == list(first.tensors)


@pytest.mark.parametrize(("shard_size", "files"), [(10**9, 1), (40_000, None), (1, 39)])
def test_shards_load(family, plan_of, tmp_path, shard_size, files):
    plan = plan_of(LINEAR, shard_size=shard_size)
    out = tmp_path / "out"
    out.mkdir()
    write_shards(plan, out)
    checkpoint = open_checkpoint(str(out))
    assert checkpoint.tensors.keys() == family.keys()
    assert files in (None, len(plan.shards))
    assert [shard.filename for shard in plan.shards] == sorted(os.path.basename(f.path) for f in checkpoint.files)
    for output in plan.outputs:
        entry = checkpoint.tensors[output.name]
        shard = plan.shards[output.shard]
        assert (entry.offset, entry.nbytes, entry.dtype, entry.shape) == (
            output.offset, output.nbytes, output.dtype, output.shape,
        )  # fmt: skip
        assert len(shard.header) % 4096 == 0
        with safe_open(out / shard.filename, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            assert torch.equal(file.get_tensor(output.name), read_entry(entry))
    for number in range(len(plan.shards)):
        held = [output.nbytes for output in plan.outputs if output.shard == number]
        assert len(held) == 1 or sum(held) <= shard_size
    if plan.index:
        assert json.loads(plan.index)["metadata"]["total_size"] == sum(t.nbytes for t in family.values())


def test_wider_dtypes_come_first_in_a_shard(family, plan_of, tmp_path):
    odd = {"odd": torch.ones(3, dtype=torch.bfloat16), "scale": torch.ones(3)}
    for name in ("a", "b"):
        save_model(name, make_tensors(layers=2) | odd)
    plan = plan_of(LINEAR)
    assert plan.outputs[0].name == "scale"
    assert all(output.offset % output.dtype.itemsize == 0 for output in plan.outputs)


@pytest.mark.parametrize(
    ("dtypes", "keys", "expected"),
    [
        (("bfloat16", "bfloat16"), "", "bfloat16"),
        (("bfloat16", "float16"), "", "float32"),
        (("bfloat16", "float32"), "dtype: float16", "float16"),
        (("bfloat16", "bfloat16"), "dtype: float16\nout_dtype: float32", "float32"),
    ],
)
def test_dtype(family, plan_of, dtypes, keys, expected):
    for name, dtype in zip("ab", dtypes, strict=True):
        save_model(name, make_tensors(dtype=getattr(torch, dtype)))
    plan = plan_of(LINEAR + keys)
    assert {output.dtype for output in plan.outputs} == {ALL[expected]}
    assert json.loads(plan.files["config.json"].text)["torch_dtype"] == expected


def test_copies_take_one_input(family, plan_of):
    plan = plan_of("merge_method: passthrough\nmodels: [{model: a}]")
    assert {output.method for output in plan.outputs} == {"copy"}
    assert all(
        output.group is None and output.inputs.base is None and len(output.inputs.tensors) == 1
        for output in plan.outputs
    )
    scaled = plan_of(
        "merge_method: passthrough\nmodels: [{model: a, parameters: {scale: [{filter: mlp, value: 0.5}, {value: 1}]}}]"
    )
    assert {("mlp" in output.name, output.method) for output in scaled.outputs} == {
        (True, "passthrough"),
        (False, "copy"),
    }
    converted = plan_of("merge_method: passthrough\ndtype: float32\nmodels: [{model: a}]")
    assert {output.method for output in converted.outputs} == {"passthrough"}


def test_a_method_that_copies_reads_only_what_it_copies(family, plan_of):
    text = "merge_method: slerp\nbase_model: base\nmodels: [{model: base}, {model: a}]\nparameters: {t: [0, 0.5, 1]}"
    outputs = by_name(plan := plan_of(text))
    assert outputs["model.layers.0.mlp.up_proj.weight"].inputs.tensors[0].model == 0
    assert outputs["model.layers.3.mlp.up_proj.weight"].inputs.tensors[0].model == 1
    assert outputs["model.layers.1.mlp.up_proj.weight"].method == "slerp"
    reasons = {(d.model, d.name): d.reason for d in plan.dropped}
    assert reasons[1, "model.layers.0.mlp.up_proj.weight"] == "the output is a copy of another input"


def test_every_input_tensor_is_accounted_for(family, plan_of):
    for name in "ab":
        extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)} if name == "a" else {}
        save_model(name, make_tensors(layers=4) | extra)
    plan = plan_of(LINEAR)
    used = {(t.model, t.name) for output in plan.outputs for t in output.inputs.every}
    dropped = {(d.model, d.name) for d in plan.dropped}
    held = {(i, name) for i, m in enumerate("ab") for name in open_checkpoint(m).tensors}
    assert used | dropped == held and not used & dropped
    assert [d.reason for d in plan.dropped] == ["a buffer that is computed from the config"]


def test_digest_depends_on_what_decides_the_bytes(family, plan_of, tmp_path):
    digest = plan_of(TIES).digest
    assert plan_of(TIES).digest == digest
    os.utime("a/model.safetensors")
    os.rename("a", "elsewhere")
    assert plan_of(TIES.replace("model: a", "model: elsewhere")).digest == digest
    os.rename("elsewhere", "a")
    for changed in (
        TIES.replace("seed: 7", "seed: 8"),
        TIES.replace("0.25", "0.26"),
        TIES.replace("{model: b", "{model: c"),
        TIES + "dtype: float32",
    ):
        assert plan_of(changed).digest != digest
    assert plan_of(TIES, shard_size=1000).digest != digest


def test_a_revision_of_a_local_folder_has_no_effect(family, plan_of):
    plan = plan_of(LINEAR.replace("model: a,", "model: a@main,"))
    assert plan.notes == ("a@main: a local folder has no revisions, so @main has no effect",)


def test_forecast(family, plan_of):
    plan = plan_of(TIES)
    cost = forecast(plan, 1 << 34)  # more than the operations take without compiled kernels
    largest = max(plan.outputs, key=lambda output: output.nbytes)
    assert (cost.largest_bytes, cost.read_twice) == (3 * largest.nbytes, ())
    assert {o.nbytes for o in plan.outputs if o.name == cost.largest} == {largest.nbytes}
    assert cost.seconds == pytest.approx((plan.bytes_read + plan.bytes_written) / cost.read_rate)
    assert 0 < cost.memory < cost.budget == 1 << 34
    assert forecast(plan, cost.memory).memory <= cost.memory, "what a merge takes is enough for it"
    with pytest.raises(BudgetError, match="needs at least"):
        forecast(plan, 1000)
    assert forecast(plan_of("merge_method: passthrough\nmodels: [{model: a}]"), 1 << 30).largest == ""


@pytest.mark.compiled
def test_forecast_of_tensors_that_do_not_fit(tmp_path, monkeypatch, plan_of):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("base", "a", "b")):
        save_model(name, make_tensors(i, layers=1, vocab=1 << 16))
    plan = plan_of(TIES)
    with pytest.raises(BudgetError) as caught:
        forecast(plan, 1000)
    needed = int(re.search(r"needs at least (\d+)", str(caught.value))[1])
    cost = forecast(plan, needed + (1 << 20))
    assert set(cost.read_twice) == {"model.embed_tokens.weight", "lm_head.weight"}
    again = 2 * 3 * (1 << 16) * 64 * 2
    assert cost.seconds == pytest.approx((plan.bytes_read + plan.bytes_written + again) / cost.read_rate)


def test_bin_and_safetensors_make_the_same_plan(family, plan_of):
    before = by_name(plan_of(LINEAR))
    tensors = {name: read_entry(entry) for name, entry in open_checkpoint("a").tensors.items()}
    os.unlink("a/model.safetensors")
    torch.save(tensors, "a/pytorch_model.bin")
    after = by_name(plan_of(LINEAR))
    assert after.keys() == before.keys()
    for name, output in after.items():
        assert torch.equal(read_entry(output.inputs.tensors[0]), tensors[name])
        assert replace(output, inputs=None, offset=0) == replace(before[name], inputs=None, offset=0)


def test_metadata_of_headers(family, plan_of):
    tensors = {name: read_entry(entry) for name, entry in open_checkpoint("a").tensors.items()}
    metadata = {"format": "pt", "lm_head.weight": "model.norm.weight", "tied": "lm_head.weight", "ss_epoch": "3"}
    save_file(tensors, "a/model.safetensors", metadata)
    plan = plan_of(LINEAR, shard_size=40_000)
    kept = {}
    for shard in plan.shards:
        header = json.loads(shard.header[8:])
        kept |= {key: shard.filename for key in header["__metadata__"] if key != "format"}
        assert header["__metadata__"]["format"] == "pt"
    assert kept == {"tied": json.loads(plan.index)["weight_map"]["lm_head.weight"]}
    assert plan.notes == ("metadata in the headers of a is not taken over: ss_epoch",)
