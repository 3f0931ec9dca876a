"""Pushing to the hub, against a stub of its HTTP interface."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import fastmerge
from fastmerge.errors import FastmergeError, InvalidInput

huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
# Its own, of how it uploads.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


class Stub(BaseHTTPRequestHandler):
    """The calls that make a repository and a commit: small files are committed by value, weights through git-lfs."""

    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/api/whoami"):
            self.answer({"name": "me", "type": "user", "auth": {}})
        else:
            self.answer({"error": "there is none"}, 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.startswith("/api/repos/create"):
            self.hub.made.append(json.loads(body))
            self.answer({"url": f"{self.hub.address}/me/merged"})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
            self.answer({"files": [{"path": p, "uploadMode": modes[p], "shouldIgnore": False} for p in paths]})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for item in objects:
                item["actions"] = {"upload": {"href": f"{self.hub.address}/upload/{item['oid']}", "header": {}}}
            self.answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    self.hub.files[line["value"]["path"]] = self.hub.objects[line["value"]["oid"]]
                elif line["key"] == "header":
                    self.hub.message = line["value"]["summary"]
            url = f"{self.hub.address}/me/merged/commit/0123"
            self.answer({"commitUrl": url, "commitOid": "0123", "pullRequestUrl": None, "success": True})
        else:
            self.answer({"error": "there is none"}, 404)

    def do_PUT(self) -> None:
        self.hub.objects[self.path.rsplit("/", 1)[-1]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({})

    def answer(self, value: dict[str, Any], status: int = 200) -> None:
        if not self.hub.allowed:
            value, status = {"error": "Invalid username or password."}, 401
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Hub:
    """What reached the hub, and whether it lets anybody in."""

    def __init__(self, address: str) -> None:
        self.address, self.allowed, self.message = address, True, ""
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    address = f"http://127.0.0.1:{server.server_port}"
    Stub.hub = Hub(address)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield Stub.hub
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_file({"w": torch.ones(3)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text('{"model_type": "tiny"}')
    models = [{"model": str(tmp_path / name), "parameters": {"weight": 1}} for name in ("a", "b")]
    fastmerge.merge({"merge_method": "linear", "models": models}, tmp_path / "merged")
    return tmp_path / "merged"


def test_a_merge_is_pushed_with_its_card_and_manifest(hub: Hub, merged: Path) -> None:
    url = fastmerge.push_to_hub(merged, "me/merged", private=True, token="hf_x")
    assert url == f"{hub.address}/me/merged/commit/0123"
    assert hub.made[0]["name"] == "merged" and hub.made[0]["organization"] == "me"
    want = {path.name: path.read_bytes() for path in merged.iterdir()}
    assert hub.files == want and {"README.md", "fastmerge.json", "model.safetensors"} <= want.keys()


def test_a_refused_token_is_said(hub: Hub, merged: Path) -> None:
    hub.allowed = False
    with pytest.raises(FastmergeError, match="cannot push to me/merged: the hub refuses the token"):
        fastmerge.push_to_hub(merged, "me/merged", token="hf_x")
    assert not hub.files


def test_only_finished_merges_of_fastmerge_are_pushed(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"holds no finished merge: no fastmerge\.json"):
        fastmerge.push_to_hub(tmp_path, "me/merged", token="hf_x")


def test_a_wrong_name_is_said(hub: Hub, merged: Path) -> None:
    with pytest.raises(InvalidInput, match=r"repository: .*give owner/name"):
        fastmerge.push_to_hub(merged, "me/merged/model", token="hf_x")


def test_the_command_pushes_what_it_merged(hub: Hub, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from fastmerge.cli import main

    monkeypatch.setenv("HF_TOKEN", "hf_x")
    recipe, out = str(merged / "mergekit_config.yml"), str(merged.parent / "again")
    done = CliRunner().invoke(main, ["merge", recipe, out, "--push-to-hub", "me/merged", "--private"])
    assert done.exit_code == 0, done.output
    assert f"{hub.address}/me/merged/commit/0123" in done.output and "private" in str(hub.made[0])


def test_the_command_finds_out_first(hub: Hub, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from fastmerge.cli import main

    monkeypatch.setenv("HF_TOKEN", "hf_x")
    hub.allowed = False
    out = merged.parent / "again"
    done = CliRunner().invoke(main, ["merge", str(merged / "mergekit_config.yml"), str(out), "--push-to-hub", "me/m"])
    assert done.exit_code == 2 and "the hub refuses the token" in done.output and not out.exists()
