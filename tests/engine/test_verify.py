"""Verification finds what was changed, and where."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from tiny_merges import make_merge

from fastmerge.engine import run, verify
from fastmerge.errors import CheckpointError

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
    assert problem.what == "1 bytes differ from the recomputed tensor, the first in element 70001"


def test_one_flipped_byte_is_found_by_checksum(merged):
    merge, plan = merged
    flip(merge, plan, plan.outputs[-1], 0)
    (problem,) = verify(merge.out, sample=0).mismatches
    assert problem.where.endswith(plan.outputs[-1].name)
    assert problem.what == "the checksum is not the one in the manifest"
    assert verify(merge.out, sample=0, checksums=False).ok


def test_every_damaged_tensor_is_named(merged):
    merge, plan = merged
    damaged = [plan.outputs[0], plan.outputs[3], plan.outputs[4]]
    for output in damaged:
        flip(merge, plan, output, 1)
    names = [problem.where.split(": ")[1] for problem in verify(merge.out).mismatches]
    assert sorted(names) == sorted(output.name for output in damaged)


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
