"""Model references: local folders, the hub's cache, and what is fetched from the hub."""

from __future__ import annotations

import importlib
import os
import re
from types import SimpleNamespace

import pytest

from fastmerge.checkpoint import locate
from fastmerge.checkpoint.locate import needed_files
from fastmerge.errors import CheckpointError


def test_local_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    assert locate("m") == locate(str(tmp_path / "m")) == str(tmp_path / "m")


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "a/b/c", "../x", "~nobody", "a..b/c"])
def test_says_what_a_model_is(path, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(CheckpointError, match="neither an existing folder nor a hub id"):
        locate(path)


@pytest.mark.parametrize("name", ["bas.", "-b", "a--b", "org/na me", "base\n", "é", "org/name.git", "x" * 97, "b\\a"])
def test_what_cannot_be_a_hub_id_stays_here(name, tmp_path, monkeypatch, hub_is_asked):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="neither an existing folder nor a hub id"):
        locate(name)
    assert not hub_is_asked


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("bas.", "base"), ("bsae", "base"), ("Base", "base"), ("base ", "base"), ("basse", "base"), ("_base", "base"),
        ("models/my_model", "models/my-model"), ("model/my-model", "models/my-model"),
        ("./models/mymodel/", "my-model"), ("model/my_model.safetensors", ""),
        ("https://huggingface.co/org/name/tree/main", "org/name"), ("hf://org/name", "org/name"),
    ],
)  # fmt: skip
def test_near_misses_stay_here(name, meant, tmp_path, monkeypatch, hub_is_asked):
    for folder in ("base", "models/my-model"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"{meant}|name the folder"):
        locate(name, beside="recipes")
    assert not hub_is_asked


@pytest.mark.parametrize("name", ["red", "./red", "org/red", "x/../red", "red.gguf", "lora"])
def test_the_folder_of_the_recipe_comes_after_the_current_one(name, tmp_path, monkeypatch, hub_is_asked):
    for place in (tmp_path / "here", tmp_path / "recipes"):
        for folder in ("red", "org/red", "x", "lora"):
            (place / folder).mkdir(parents=True)
            (place / folder / ("adapter_config.json" if folder == "lora" else "model.safetensors")).touch()
        (place / "red.gguf").touch()
    recipes = tmp_path / "recipes"
    monkeypatch.chdir(tmp_path / "here")
    assert locate(name, beside=str(recipes)) == os.path.abspath(name)
    monkeypatch.chdir(tmp_path)
    assert locate(name, beside=str(recipes)) == os.path.normpath(recipes / name)
    assert not hub_is_asked


def test_a_revision_and_a_folder_without_weights_are_not_taken_from_the_recipes_folder(tmp_path, hub_is_asked):
    (tmp_path / "gpt2").mkdir()
    assert locate("gpt2", beside=str(tmp_path)) == "folder"
    (tmp_path / "gpt2" / "model.safetensors").touch()
    assert locate("gpt2", "main", str(tmp_path)) == "folder"
    assert hub_is_asked == ["gpt2", "gpt2"]


@pytest.mark.parametrize(
    ("name", "revision"), [("gpt2", None), ("org/name-8b", None), ("bose", "main"), ("org/name", None), ("code", None)]
)
def test_what_may_be_a_hub_id_is_asked_for(name, revision, tmp_path, monkeypatch, hub_is_asked):
    for folder in ("gpt3", "org/name-7b", "base", "cod"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / ("model.safetensors" if folder != "cod" else "main.c")).touch()
    monkeypatch.chdir(tmp_path)
    assert locate(name, revision) == "folder" and hub_is_asked == [name]


@pytest.fixture
def hub_is_asked(monkeypatch):
    """The names that were asked for."""
    asked = []
    module = importlib.import_module("fastmerge.checkpoint.locate")
    monkeypatch.setattr(module, "_download", lambda name, _: asked.append(name) or "folder")
    return asked


def test_files(tmp_path):
    for name in ("model.safetensors", "a.bin", "b.pt"):
        (tmp_path / name).write_bytes(b"")
        assert locate(str(tmp_path / name)) == str(tmp_path / name)
    (tmp_path / "config.json").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is a file; name the folder of the checkpoint, or a file of weights"):
        locate(str(tmp_path / "config.json"))


SMALL = ["config.json", "tokenizer.model", "tekken.json", "merges.txt", "chat_template.jinja", "README.md"]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = "model.safetensors.index.json"
MODULES = ["modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors", "additional_chat_templates/tool.jinja"]


@pytest.mark.parametrize(
    ("files", "weights"),
    [
        (["model.safetensors", "pytorch_model.bin", "model.gguf", "original/x.safetensors", "a.png"], 1),
        (["pytorch_model.bin", "training_args.bin", "flax_model.msgpack", "tf_model.h5"], 1),
        ([*SHARDS, INDEX, "consolidated.safetensors", "model.fp16.safetensors", "pytorch_model-00001-of-00002.bin"], 3),
        ([*SHARDS, INDEX, "consolidated-00001-of-00002.safetensors", "model-00001-of-00002.fp16.safetensors"], 3),
        (["model.safetensors", *SHARDS, "consolidated.00.pth"], 1),
        (["first.safetensors", "second.safetensors", INDEX, "consolidated.safetensors", "model.bf16.safetensors"], 3),
        (["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "pytorch_model.fp16.bin"], 2),
        (["adapter_model.safetensors", "adapter_model.bin", "optimizer.pt"], 1),
        (["model.safetensors", "adapter_model.safetensors", "onnx/model.onnx", "openvino_model.bin"], 2),
        (["m-Q8_0.gguf", "flax_model.msgpack", "other/m-Q4_0.gguf"], 1),
        (["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"], 2),
    ],
)
def test_one_copy_of_the_weights(files, weights):
    """The first ``weights`` of the repository's files are wanted, and what is small."""
    assert sorted(needed_files([*files, *SMALL, *MODULES])) == sorted([*files[:weights], *SMALL, *MODULES])


def test_one_of_several_models_in_gguf_must_be_named():
    with pytest.raises(
        CheckpointError, match=r"holds 2 models in GGUF: m-Q4_0.gguf, m-Q8_0-00001-of-00002.gguf \(down"
    ):
        needed_files(["m-Q4_0.gguf", "m-Q8_0-00002-of-00002.gguf", "m-Q8_0-00001-of-00002.gguf", "config.json"])


@pytest.fixture
def cached(tmp_path):
    """A repository in the hub's cache with two snapshots, of which ``main`` is the second."""
    for name in ("1a" * 20, "2b" * 20):
        (tmp_path / "models--org--name" / "snapshots" / name).mkdir(parents=True)
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("2b" * 20)
    return tmp_path / "models--org--name"


def test_repository_in_the_cache(cached):
    snapshots = cached / "snapshots"
    assert locate(str(cached)) == str(snapshots / ("2b" * 20))
    assert locate(str(cached), "1a1a1a") == str(snapshots / ("1a" * 20))
    with pytest.raises(CheckpointError, match="has no snapshot of v9; it holds 1a1a"):
        locate(str(cached), "v9")
    (cached / "refs" / "main").unlink()
    with pytest.raises(CheckpointError, match="has no snapshot of main"):
        locate(str(cached))
    (snapshots / ("1a" * 20)).rmdir()
    assert locate(str(cached)) == str(snapshots / ("2b" * 20))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub with an empty cache and no network; the test may replace ``model_info``."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(importlib.import_module("huggingface_hub.constants"), "HF_HUB_CACHE", str(tmp_path / "cache"))

    def unreachable(*args, **kwargs):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    return huggingface_hub


def test_unreachable_hub(hub):
    with pytest.raises(CheckpointError, match=r"org/name: no such folder, the hub cannot be reached \(RuntimeError\)"):
        locate("org/name")


@pytest.mark.parametrize("revision", [None, "v2"])
def test_cache_without_network(hub, tmp_path, revision):
    repository = tmp_path / "cache" / "models--org--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / (revision or "main")).write_text("0" * 40)
    assert locate("org/name", revision) == str(snapshot)


def test_download(hub, monkeypatch):
    calls = []
    files = [SimpleNamespace(rfilename=name) for name in ("model.safetensors", "config.json", "x.bin")]
    monkeypatch.setattr(
        hub.HfApi, "model_info", lambda self, name, revision: SimpleNamespace(sha=f"sha of {revision}", siblings=files)
    )
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **options: calls.append((name, options)) or "folder")
    assert locate("org/name", "v1") == "folder"
    wanted = {"revision": "sha of v1", "allow_patterns": ["model.safetensors", "config.json"]}
    assert calls == [("org/name", wanted)]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["consolidated.00.pth", "params.json"], "consolidated.00.pth: Meta's own format (run transformers'"),
        (["unet/diffusion_pytorch_model.safetensors", "model_index.json"], "model_index.json: a pipeline of diffusers"),
        (["flax_model.msgpack", "config.json"], "flax_model.msgpack: Flax weights"),
        (["onnx/model.onnx", "config.json"], "the repository holds no weights"),
        (["iter_0001/mp_rank_00/model.pt"], "iter_0001/: a Megatron checkpoint"),
        (["7b/model.safetensors", "README.md"], "the folder 7b/ in it holds weights (download the repository"),
        (["model-00001-of-00002.safetensors", "config.json"], "1 shards, model-00001-of-00002.safetensors among them"),
        (["weights.safetensors"], "weights under another name"),
        (["README.md"], "the repository holds no weights"),
    ],
)
def test_foreign_formats_are_named_before_the_download(files, said, hub, monkeypatch):
    listed = SimpleNamespace(sha="0", siblings=[SimpleNamespace(rfilename=name) for name in files])
    monkeypatch.setattr(hub.HfApi, "model_info", lambda self, name, revision: listed)
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **options: pytest.fail("was downloaded"))
    with pytest.raises(CheckpointError, match=re.escape(said)) as caught:
        locate("org/name", "v1")
    assert str(caught.value).startswith("org/name@v1: ")


def test_unknown_repository(hub, monkeypatch):
    from huggingface_hub.errors import HfHubHTTPError

    def missing(*args, **kwargs):
        error = HfHubHTTPError.__new__(HfHubHTTPError)
        Exception.__init__(error, "404: repository not found")
        error.response = SimpleNamespace(status_code=404)
        raise error

    monkeypatch.setattr(hub.HfApi, "model_info", missing)
    with pytest.raises(CheckpointError, match="org/name@v1: no such folder, and the hub does not give it"):
        locate("org/name", "v1")


def test_a_model_with_an_adapter_is_named_where_adapters_fold(tmp_path):
    with pytest.raises(CheckpointError, match="an adapter is folded by recipes, analyze and extract"):
        locate(f"{tmp_path}+{tmp_path}/adapter")
