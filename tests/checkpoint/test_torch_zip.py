"""``.bin`` checkpoints: ranges that hold the tensors, and nothing unsafe."""

from __future__ import annotations

import os
import zipfile

import pytest
import torch
from checkpoint_files import read_entry
from tiny_models import make_tensors, save_model

from fastmerge.checkpoint import open_checkpoint, read_weights
from fastmerge.errors import CheckpointError


def test_reads_every_tensor(tmp_path):
    tensors = make_tensors()
    tensors["tied"] = tensors["lm_head.weight"]
    tensors["view"] = tensors["lm_head.weight"][3:5]
    tensors["empty"] = torch.empty(0, 4)
    tensors["scalar"] = torch.tensor(3.0)
    folder = save_model(tmp_path / "m", make_tensors())
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    found = open_checkpoint(str(folder)).tensors
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype.torch == tensor.dtype
        assert torch.equal(read_entry(found[name]), tensor), name
    assert found["tied"].offset == found["lm_head.weight"].offset


def test_parameters_and_an_unused_member(tmp_path):
    path = tmp_path / "m.bin"
    whole = torch.arange(8.0)
    torch.save({"p": torch.nn.Parameter(torch.ones(3)), "v": whole[4:]}, path)
    _, found = read_weights(str(path))
    assert torch.equal(read_entry(found["v"]), whole[4:])
    assert torch.equal(read_entry(found["p"]), torch.ones(3))


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def refused(path, message, remedy="safetensors.torch.save_file"):
    with pytest.raises(CheckpointError, match=message) as caught:
        read_weights(str(path))
    assert str(path) in str(caught.value) and remedy in str(caught.value)


def test_code_is_never_run(tmp_path):
    path, target = tmp_path / "m.bin", tmp_path / "made-by-the-pickle"
    torch.save({"a": torch.ones(2), "b": Evil(str(target))}, path)
    refused(path, "holds more than tensors and is not loaded: .*mkdir")
    assert not target.exists()


def test_legacy_format(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "m.bin", _use_new_zipfile_serialization=False)
    refused(tmp_path / "m.bin", "not in PyTorch's zip format")


def test_other_contents(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "m.bin")
    refused(tmp_path / "m.bin", "not a dictionary of tensors")
    torch.save({"a": torch.ones(2), "step": 3}, tmp_path / "m.bin")
    refused(tmp_path / "m.bin", "not a dictionary of tensors")
    torch.save({"model": {"a": torch.ones(2)}, "step": 3}, tmp_path / "m.bin")
    refused(tmp_path / "m.bin", "it holds model: run", "torch_to_dcp m.bin FOLDER where you trust the file, and name")


def test_not_contiguous(tmp_path):
    torch.save({"a": torch.ones(2, 3).t()}, tmp_path / "m.bin")
    refused(tmp_path / "m.bin", "a is sparse, quantized or not contiguous")


def test_compressed_member(tmp_path):
    path, packed = tmp_path / "m.bin", tmp_path / "packed.bin"
    torch.save({"a": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    refused(packed, "is compressed")


def test_truncated(tmp_path):
    path = tmp_path / "m.bin"
    torch.save({"a": torch.ones(2000)}, path)
    path.write_bytes(path.read_bytes()[:-3000])
    refused(path, "not in PyTorch's zip format")
