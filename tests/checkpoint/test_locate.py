"""Model references: local folders, the hub's cache, and what is fetched from the hub."""

from __future__ import annotations

import importlib
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
def test_says_what_a_model_is(path):
    with pytest.raises(CheckpointError, match="neither an existing folder nor a hub id"):
        locate(path)


def test_refuses_files(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file; name the folder"):
        locate(str(tmp_path / "model.safetensors"))


def test_needed_files():
    small = ["config.json", "tokenizer.model", "merges.txt", "chat_template.jinja", "README.md"]
    both = ["model.safetensors", "pytorch_model.bin", "model.gguf", "original/x.safetensors", "a.png", *small]
    assert needed_files(both) == ["model.safetensors", *small]
    assert needed_files(["pytorch_model.bin", "training_args.bin", *small]) == ["pytorch_model.bin", *small]


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
