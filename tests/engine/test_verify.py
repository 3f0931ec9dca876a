"""Verification finds what was changed, and where."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import xxhash
from checkpoint_files import write_adapter
from safetensors.torch import load_file, save_file
from tiny_merges import expected, make_merge

from fastmerge.engine import RunOptions, run, verify
from fastmerge.engine.checksums import BLOCK
from fastmerge.errors import CheckpointError
from fastmerge.plan.trust import kind_of

WIDE = {"hidden": 256, "inner": 640, "vocab": 768, "layers": 1}


@pytest.fixture
def merged(tmp_path):
    """A finished merge whose output has several shards; returns it and its plan."""
    merge = make_merge(tmp_path, "dare_ties", **WIDE)
    plan = merge.plan(shard_size=1_000_000)
    run(plan, merge.out)
    return merge, plan


def flip(merge, plan, output, byte):
    with open(merge.out / plan.shards[output.shard].filename, "r+b") as file:
        file.seek(output.offset + byte)
        old = file.read(1)
        file.seek(output.offset + byte)
        file.write(bytes([old[0] ^ 1]))


@pytest.mark.parametrize("backend", ["reference", None])
def test_intact_output(merged, backend):
    merge, plan = merged
    report = verify(merge.out, backend=backend)
    assert report.ok and not report.notes
    assert (report.tensors, report.recomputed, report.checked) == (len(plan.outputs), len(plan.outputs), 0)
    report = verify(merge.out, sample=3)
    assert report.ok
    assert (report.recomputed, report.checked) == (3, len(plan.outputs) - 3)


def test_one_flipped_byte_is_found_by_recomputing(merged):
    merge, plan = merged
    output = next(o for o in plan.outputs if o.name.endswith("down_proj.weight"))
    flip(merge, plan, output, 2 * 70_001)
    (problem,) = verify(merge.out).mismatches
    assert problem.where.endswith(f"{plan.shards[output.shard].filename}: {output.name}")
    assert problem.what == "1 byte differs from the recomputed tensor, the first in element 70001"


def test_one_flipped_byte_is_found_by_checksum(merged):
    merge, plan = merged
    flip(merge, plan, plan.outputs[-1], 0)
    (problem,) = verify(merge.out, sample=0).mismatches
    assert problem.where.endswith(plan.outputs[-1].name)
    assert problem.what == "the checksum is not the one in the manifest"


def test_every_damaged_tensor_is_named(merged):
    merge, plan = merged
    damaged = [plan.outputs[0], plan.outputs[3], plan.outputs[4]]
    for output in damaged:
        flip(merge, plan, output, 1)
    names = [problem.where.split(": ")[1] for problem in verify(merge.out).mismatches]
    assert sorted(names) == sorted(output.name for output in damaged)


def test_every_other_file_is_checked(merged):
    merge, _ = merged
    small = {path for path in merge.out.iterdir() if path.suffix != ".safetensors" and path.name != "fastmerge.json"}
    assert {"config.json", "generation_config.json", "mergekit_config.yml"} < {path.name for path in small}
    for path in small:
        data = path.read_bytes()
        path.write_bytes(data.replace(b"e", b"E", 1))
        report = verify(merge.out, sample=0)
        said = [(problem.where, problem.what) for problem in report.mismatches]
        if path.name == "README.md":
            assert report.ok and report.notes == (f"{path} is not what the merge wrote.",)
        else:
            assert said == [(str(path), "is not what the merge wrote")]
        path.write_bytes(data)
    (merge.out / "config.json").rename(merge.out.parent / "config.json")
    assert [problem.what for problem in verify(merge.out, sample=0).mismatches] == ["is missing"]


def test_weights_that_were_put_into_one_file(merged):
    merge, plan = merged
    tensors = {}
    for shard in plan.shards:
        tensors |= load_file(merge.out / shard.filename)
        (merge.out / shard.filename).unlink()
    (merge.out / "model.safetensors.index.json").unlink()
    save_file(tensors, merge.out / "model.safetensors", {"format": "pt"})
    assert verify(merge.out).ok
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, merge.out / "model.safetensors", {"format": "pt"})
    assert not verify(merge.out).ok


def test_a_changed_header_of_weights_is_named(merged):
    merge, plan = merged
    path = merge.out / plan.shards[0].filename
    path.write_bytes(path.read_bytes().replace(b'"pt"', b'"tp"', 1))
    (problem,) = verify(merge.out, sample=0).mismatches
    assert (problem.where, problem.what) == (str(path), "its header is not what the merge wrote")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda manifest: manifest.pop("tensors"), "tensors is missing"),
        (lambda manifest: manifest["inputs"][1].pop("files"), r"inputs\[1\]\.files is missing"),
        (lambda manifest: manifest.update(seed=None), "seed is None, expected a whole number"),
        (lambda manifest: manifest["sources"].update(x=[1]), r"sources\.x\[0\] is 1, expected text"),
        (lambda manifest: manifest.update(files={}), "files is {}, expected a list"),
        (lambda manifest: manifest.update(truncated="no"), "truncated is 'no', expected true or false"),
        (lambda manifest: manifest.update(state_key=["model"]), r"state_key is \['model'\], expected text"),
    ],
)
def test_a_damaged_manifest_ends_in_one_error(merged, change, said):
    merge, _ = merged
    path = merge.out / "fastmerge.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=rf"fastmerge.json: is damaged: {said}"):
        verify(merge.out)


def test_manifest(merged):
    merge, plan = merged
    manifest = json.loads((merge.out / "fastmerge.json").read_text())
    assert manifest["recipe"] == merge.recipe
    assert manifest["method"] == "dare_ties" and manifest["semantics"] == "mergekit" and manifest["seed"] == 0
    assert manifest["plan"] == plan.digest
    assert list(manifest["tensors"]) == [output.name for output in plan.outputs]
    assert [item["folder"] for item in manifest["inputs"]] == [model.folder for model in plan.models]


def test_missing_and_changed_inputs(merged):
    merge, _ = merged
    model = merge.out.parent / "model1"
    os.utime(model / "model.safetensors")
    report = verify(merge.out)
    assert report.ok and report.notes == (f"{model}/model.safetensors was written again after the merge.",)
    with open(model / "model.safetensors", "r+b") as file:
        file.seek(-2000, os.SEEK_END)
        file.write(b"\x00" * 500)
    assert not verify(merge.out).ok
    shutil.rmtree(model)
    with pytest.raises(CheckpointError, match=r"model1: an input of the merge is missing"):
        verify(merge.out)


def test_folder_without_a_manifest(tmp_path):
    with pytest.raises(CheckpointError, match=r"fastmerge.json: No such file or directory; only outputs of fastmerge"):
        verify(tmp_path)


def test_verifies_from_another_folder(tmp_path, monkeypatch):
    merge = make_merge(tmp_path, "linear")
    monkeypatch.chdir(tmp_path)
    merge.recipe = merge.recipe.replace(str(tmp_path), ".")
    run(merge.plan(), merge.out)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert verify(merge.out).ok


@pytest.mark.parametrize("size", [{}, {"hidden": 256, "inner": 640, "vocab": 768, "layers": 1}])
@pytest.mark.parametrize("method", ["linear", "ties", "iso_c"])
@pytest.mark.parametrize("adapter", [False, True])
def test_a_swapped_input_is_named(tmp_path, size, method, adapter):
    """One with other values, of the same size, with the same header and time."""
    merge = make_merge(tmp_path, method, **size)
    name = "model.layers.0.mlp.down_proj"
    if adapter:
        shape = tuple(expected(merge.plan())[f"{name}.weight"].shape)
        write_adapter(tmp_path / "adapter", {name: shape}, rank=2)
        merge.recipe = merge.recipe.replace(f"{tmp_path}/model1", f"{tmp_path}/model1+{tmp_path}/adapter")
    plan = merge.plan()
    run(plan, merge.out, RunOptions(chunk=BLOCK))
    (output,) = [output for output in plan.outputs if output.name == f"{name}.weight"]
    tensor = output.inputs.every[1]
    for part in tensor.stored if adapter else [tensor]:
        before, data = os.stat(part.path), Path(part.path).read_bytes()
        swapped = bytearray(data)
        swapped[part.offset + part.nbytes - 2] ^= 1  # one bit of the last value
        Path(part.path).write_bytes(swapped)
        os.utime(part.path, ns=(before.st_atime_ns, before.st_mtime_ns))
        first = next(iter(verify(merge.out).mismatches))
        assert str(first).startswith(f"{part.path}: {name}.weight: this input is not what was merged")
        Path(part.path).write_bytes(data)
        os.utime(part.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert verify(merge.out, threads=1, ram=96 << 20).ok


def test_files_that_planning_read_are_listed(merged):
    merge, plan = merged
    manifest = json.loads((merge.out / "fastmerge.json").read_text())
    listed = {(item["model"], item["name"]): item for item in manifest["read"]}
    for model in plan.models:
        config = listed[model.reference, "config.json"]
        data = (Path(model.folder) / "config.json").read_bytes()
        assert (config["bytes"], config["xxh3"]) == (len(data), xxhash.xxh3_64_hexdigest(data))
        assert {Path(file.path).name for file in model.files} < {n for m, n in listed if m == model.reference}
    config = Path(plan.models[0].folder) / "config.json"
    config.write_text(config.read_text() + "\n")
    report = verify(merge.out)
    assert report.ok and f"{config} is no longer what the merge read." in report.notes


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tokenizer_config.json", "tokenizer"), ("vocab.txt", "tokenizer"), ("generation_config.json", "config"),
        ("chat_template.jinja", "chat template"), ("adapter_config.json", "config of an adapter"),
        ("model.safetensors.index.json", "index"), ("pytorch_model.bin", "weights"), ("additional.x", "other"),
    ],
)  # fmt: skip
def test_what_files_are_taken_for(name, kind):
    assert kind_of(name)[0] == kind and kind_of(f"/a/b/{name}") == kind_of(name)
