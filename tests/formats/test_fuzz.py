"""A short form of ``python -m tests.fuzz``, and what its campaigns found."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fastmerge.checkpoint import open_checkpoint
from fastmerge.checkpoint.peft.patterns import compile_pattern
from fastmerge.checkpoint.quantized import decoded
from fastmerge.errors import CheckpointError, FastmergeError
from fastmerge.methods import all_methods
from fastmerge.plan import make_plan
from fastmerge.recipe import load

ROOT = Path(__file__).resolve().parents[2]
CORPUS = sorted((ROOT / "tests" / "data" / "corpus").iterdir())


@pytest.fixture(scope="module")
def fuzz():
    """The modules of the campaign, imported as its command does."""
    sys.path.insert(0, str(ROOT))
    try:
        all_methods()
        yield importlib.import_module("tests.fuzz.targets"), importlib.import_module("tests.fuzz.watching")
    finally:
        sys.path.remove(str(ROOT))


TARGETS = ("safetensors", "index", "config", "adapter", "bin", "recipe", "quantized", "gguf", "distributed")


def test_all_targets_are_tried(fuzz):
    assert tuple(fuzz[0].TARGETS) == TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_random_files(target, fuzz, tmp_path_factory, monkeypatch):
    targets, watching = fuzz
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place = tmp_path_factory.mktemp(target)

    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def check(rng):
        folder = place / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        targets.TARGETS[target].write(rng, folder)
        with watching.watched(folder):
            targets.TARGETS[target].use(folder)

    check()


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_what_was_found_stays_mended(case, fuzz, tmp_path, monkeypatch):
    targets, watching = fuzz
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "case"
    shutil.copytree(case, folder, symlinks=True)
    with watching.watched(folder):
        targets.TARGETS[case.name.partition("-")[0]].use(folder)


def test_the_watch_sees_what_must_not_happen(fuzz, tmp_path):
    watching = fuzz[1]
    secret = tmp_path / "secret"
    secret.write_text("x")
    (tmp_path / "case").mkdir()
    with pytest.raises(watching.Finding, match="ZeroDivisionError"), watching.watched(tmp_path / "case"):
        1 / 0  # noqa: B018
    with pytest.raises(watching.Finding, match="outside of the folder"), watching.watched(tmp_path / "case"):
        secret.read_text()
    with watching.watched(tmp_path / "case"):
        raise FastmergeError("a user can act on it")


@pytest.fixture
def model(tmp_path, fuzz):
    fuzz[0].write_model(tmp_path / "model")
    return tmp_path / "model"


def plan(model):
    return make_plan(load(f"merge_method: passthrough\nmodels: [{{model: {model}}}]\n"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "modeling_x.py"])
def test_small_files_do_not_lead_out_of_their_folder(model, tmp_path, name):
    (tmp_path / "secret").write_text("{}")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to("../secret")
    with pytest.raises(FastmergeError, match=r"is a link out of its folder, to .*secret \(copy that file"):
        plan(model)
    (model / name).unlink()
    (model / "inside").write_text("{}")
    (model / name).symlink_to("inside")
    plan(model)


def test_links_of_the_hubs_cache_are_followed(model, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    shutil.copytree(model, snapshot)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (snapshot / "config.json").rename(tmp_path / "models--a--b" / "blobs" / "ab")
    (snapshot / "config.json").symlink_to("../../blobs/ab")
    plan(snapshot)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.txt"])
def test_pipes_are_not_waited_for(model, name):
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    with pytest.raises(FastmergeError, match="is a pipe, a socket or a device"):
        plan(model)


def test_small_files_are_small(model):
    with open(model / "config.json", "r+b") as file:
        file.truncate(200 << 20)
    with pytest.raises(CheckpointError, match="has 209715200 bytes, more than"):
        open_checkpoint(str(model))


@pytest.mark.parametrize("pattern", ["(a+)+", "(a|a)*b", "(x*)*y", "*.q_proj", "(?:.*a){70}"])
def test_patterns_that_take_for_ever_are_refused(pattern):
    with pytest.raises(CheckpointError):
        compile_pattern(pattern, "adapter_config.json")
    assert compile_pattern(r"layers\.(0|1)\..*_proj", "c").match("model.layers.1.mlp.up_proj")


NF4 = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [6, 8], "nested_blocksize": 256}
ODD = [2.5, True, "8", [], {}, -1, 0, 10**30, float("nan"), None]


@pytest.mark.parametrize("odd", ODD, ids=str)
@pytest.mark.parametrize(
    "key", ["shape", "inner", "blocksize", "nested_blocksize", "nested_offset", "bits", "num_bits"]
)
def test_settings_of_the_wrong_kind(key, odd, tmp_path):
    """JSON may hold anything where a number of things is meant; what does not fit is one error."""
    state = NF4 | {"nested_offset": 0.5} | ({"shape": [6, odd]} if key == "inner" else {key: odd})
    codes = {"absmax": (torch.uint8, 1), "nested_absmax": (torch.float32, 1), "nested_quant_map": (torch.float32, 256)}
    tensors = {f"m.weight.{name}": torch.ones(count, dtype=dtype) for name, (dtype, count) in codes.items()}
    tensors |= {"m.weight": torch.ones(24, 1, dtype=torch.uint8), "w.weight_packed": torch.ones(6, 1).int()}
    tensors["m.weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(state).encode())).byte()
    tensors |= {"w.weight_scale": torch.ones(6, 1), "x.weight": torch.ones(6, 4).int().view(torch.uint32)}
    tensors |= {"x.scales": torch.ones(6, 1), "x.biases": torch.ones(6, 1)}
    if key in ("bits", "num_bits"):
        tensors = {name: tensor for name, tensor in tensors.items() if name[0] == ("x" if key == "bits" else "w")}
    save_file(tensors, tmp_path / "model.safetensors")
    settings = {"group_size": 32, "bits": 4, key: odd}
    (tmp_path / "config.json").write_text(json.dumps({"quantization": settings, "model_type": [odd]}))
    with contextlib.suppress(CheckpointError):
        found = decoded(open_checkpoint(str(tmp_path))).tensors
        assert all(type(n) is int for entry in found.values() for n in entry.shape)
        # num_bits says nothing of what the shapes say; no digits of an offset are beyond float32.
        assert key == "num_bits" or ((key, odd) == ("nested_offset", odd) and abs(odd) <= 10**30)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["l._weight_qdata", "l.weight_qdata", "l.weight:qdata", "l.weight:_data"])
def test_codes_of_torchao_are_refused_by_name(name, dtype, tmp_path):
    save_file({name: torch.zeros(4, 4).to(dtype), "l.weight_scale": torch.ones(4, 1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="codes of torchao, which is not read"):
        decoded(open_checkpoint(str(tmp_path)))
