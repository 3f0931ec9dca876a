"""Files of weights as models: what mergekit-pytorch merges."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_tensors, save_model

import fastmerge

RECIPE = "merge_method: task_arithmetic\nbase_model: a.safetensors\nparameters: {weight: 0.5}\nmodels: [{model: %s}]\n"


@pytest.fixture
def tensors(tmp_path, monkeypatch):
    """Weights of no language model, as ``a.safetensors`` in the folder in which the test runs."""
    monkeypatch.chdir(tmp_path)
    tensors = {"conv.weight": torch.randn(4, 3, 2), "bn.running_mean": torch.randn(4), "steps": torch.tensor(7)}
    save_file(tensors, "a.safetensors")
    return tensors


@pytest.mark.parametrize("name", ["b.safetensors", "b.bin", "b.pt", "sub/b.pth"])
def test_kinds(tensors, tmp_path, name):
    tuned = {key: t + 0.5 if t.is_floating_point() else t for key, t in tensors.items()}
    (tmp_path / "sub").mkdir()
    (torch.save if not name.endswith(".safetensors") else save_file)(tuned, name)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "train.py").touch()
    fastmerge.merge(RECIPE % name, "out")
    merged = load_file("out/model.safetensors")
    for key, tensor in tensors.items():
        other = tuned[key]
        expected = tensor + 0.5 * (other - tensor) if tensor.is_floating_point() else tensor
        assert torch.equal(merged[key], expected)
    # Without a config beside them, what lies around is not of the models.
    assert sorted(os.listdir("out")) == ["README.md", "fastmerge.json", "mergekit_config.yml", "model.safetensors"]
    assert fastmerge.verify("out").ok


def test_a_file_of_a_folder(tmp_path, monkeypatch):
    """With the config and the tokenizer beside it, and the bits that the folder gives."""
    monkeypatch.chdir(tmp_path)
    base = make_tensors(layers=1, hidden=16, inner=8, heads=4, vocab=8)
    for seed, name in enumerate("ab"):
        save_model(name, make_tensors(seed, base), max_position_embeddings=99)
    for out, ending in (("folders", ""), ("files", "/model.safetensors")):
        models = "".join(f"  - model: {name}{ending}\n" for name in "ab")
        fastmerge.merge("merge_method: linear\nparameters: {weight: 1}\nmodels:\n" + models, out)
    beside = {"README.md", "fastmerge.json", "mergekit_config.yml"}
    for name in set(os.listdir("folders")) - beside:
        assert (tmp_path / "files" / name).read_bytes() == (tmp_path / "folders" / name).read_bytes()
    assert set(os.listdir("files")) == set(os.listdir("folders"))


def test_an_adapter_is_no_file(tensors):
    with pytest.raises(fastmerge.InvalidInput, match="name the folder of the adapter"):
        fastmerge.check(
            "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a.safetensors+a.safetensors}]\n"
        )
