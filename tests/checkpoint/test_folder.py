"""Checkpoint folders: single files, shards with an index, and indices that lie."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoint_files import read_entry
from safetensors.torch import save_file
from tiny_models import make_tensors, save_model

from fastmerge.checkpoint import open_checkpoint
from fastmerge.errors import CheckpointError


@pytest.mark.parametrize("shards", [1, 2, 37])
def test_reads_every_tensor(tmp_path, shards):
    tensors = make_tensors(layers=5)
    checkpoint = open_checkpoint(str(save_model(tmp_path / "m", tensors, shards=shards)))
    assert len(checkpoint.files) == shards
    assert checkpoint.config["num_hidden_layers"] == 5
    assert checkpoint.tensors.keys() == tensors.keys()
    assert all(torch.equal(read_entry(checkpoint.tensors[name]), tensor) for name, tensor in tensors.items())


def sharded(tmp_path):
    folder = save_model(tmp_path / "m", make_tensors(), shards=3)
    index = folder / "model.safetensors.index.json"
    return folder, index, json.loads(index.read_text())


def expect(folder, *messages):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(folder))
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize("outside", ["../elsewhere.safetensors", "a/../../x.safetensors", "/etc/passwd"])
def test_index_outside_its_folder(tmp_path, outside):
    folder, path, index = sharded(tmp_path)
    index["weight_map"]["model.norm.weight"] = outside
    path.write_text(json.dumps(index))
    expect(folder, str(path), "points outside its folder", outside)


def test_missing_shard(tmp_path):
    folder, path, _ = sharded(tmp_path)
    (folder / "model-00002-of-00003.safetensors").unlink()
    expect(folder, str(path), "model-00002-of-00003.safetensors is missing", "download it again")


def test_tensor_in_two_shards(tmp_path):
    folder, _, index = sharded(tmp_path)
    home = index["weight_map"]["model.norm.weight"]
    other = next(name for name in index["weight_map"].values() if name != home)
    names = [name for name, shard in index["weight_map"].items() if shard == other]
    save_file({name: torch.zeros(2) for name in [*names, "model.norm.weight"]}, folder / other)
    expect(folder, "model.norm.weight is also in")


def test_tensor_that_the_index_does_not_list(tmp_path):
    folder, path, index = sharded(tmp_path)
    del index["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(index))
    expect(folder, "are in its shards but not in the index: model.norm.weight")


def test_tensor_that_no_shard_holds(tmp_path):
    folder, path, index = sharded(tmp_path)
    index["weight_map"]["model.ghost.weight"] = index["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(index))
    expect(folder, "are not in any shard: model.ghost.weight")


def test_tensor_in_another_shard(tmp_path):
    folder, path, index = sharded(tmp_path)
    home = index["weight_map"]["model.norm.weight"]
    index["weight_map"]["model.norm.weight"] = next(name for name in index["weight_map"].values() if name != home)
    path.write_text(json.dumps(index))
    expect(folder, "are in another shard than it says: model.norm.weight")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("{}", "weight_map"),
        ('{"weight_map": {"a": 1}}', "weight_map"),
    ],
)
def test_broken_index(tmp_path, text, message):
    folder, path, _ = sharded(tmp_path)
    path.write_text(text)
    expect(folder, str(path), message)


def test_no_weights(tmp_path):
    expect(tmp_path, str(tmp_path), "no weights; expected one of model.safetensors")


def test_adapter_alone(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    expect(tmp_path, "is a LoRA adapter, not a model", "model+adapter")


def test_single_file_beside_an_index(tmp_path):
    folder, _, index = sharded(tmp_path)
    whole = make_tensors(seed=9)
    save_file(dict(list(whole.items())[:2]), folder / "model.safetensors")
    expect(folder, "model.safetensors (2 tensors) and model.safetensors.index.json (21 tensors)", "delete that one")
    save_file(whole, folder / "model.safetensors")
    checkpoint = open_checkpoint(str(folder))
    assert torch.equal(read_entry(checkpoint.tensors["model.norm.weight"]), whole["model.norm.weight"])
    (note,) = checkpoint.notes
    assert "are both there; model.safetensors is read, as transformers does" in note
    # An index whose shards are gone decides nothing.
    for name in set(index["weight_map"].values()):
        (folder / name).unlink()
    save_file(dict(list(whole.items())[:2]), folder / "model.safetensors")
    assert len(open_checkpoint(str(folder)).tensors) == 2


def test_weights_in_two_formats(tmp_path):
    folder = save_model(tmp_path / "m", make_tensors())
    torch.save({}, folder / "pytorch_model.bin")
    (note,) = open_checkpoint(str(folder)).notes
    assert note == f"{folder}: model.safetensors is read, and not pytorch_model.bin, which is there as well"


def test_shards_that_the_index_does_not_name(tmp_path):
    folder, _, _ = sharded(tmp_path)
    assert open_checkpoint(str(folder)).notes == ()
    save_file(make_tensors(), folder / "model-00001-of-00009.safetensors")
    (note,) = open_checkpoint(str(folder)).notes
    assert "model-00001-of-00009.safetensors is not in the index and is not read" in note
