"""Merges straight into checkpoints of torch.distributed.checkpoint: read by torch itself, stopped, shared, verified."""

from __future__ import annotations

import json
import os
from contextlib import suppress

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from commands import call
from launching import in_threads
from safetensors.torch import load_file, save_file
from tiny_merges import same_files
from tiny_models import make_tensors, save_model

import fastmerge
from fastmerge.checkpoint import open_checkpoint
from fastmerge.checkpoint.distributed import chunks, with_key
from fastmerge.checkpoint.distributed.archive import archive
from fastmerge.dtypes import float32
from fastmerge.engine import RunOptions, run
from fastmerge.engine.files import OutputFiles
from fastmerge.errors import FastmergeError, InvalidInput, OutputError
from fastmerge.plan import make_plan
from fastmerge.plan.types import AsState
from fastmerge.recipe import load

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:.*TypedStorage is deprecated")

SIZE = {"hidden": 16, "inner": 24, "vocab": 40, "layers": 1}
NAMES = {
    "tok.weight": "model.embed_tokens.weight",
    "blocks.{i}.{rest*}": "model.layers.{i}.{rest*}",
    "{rest*}": "model.{rest*}",
}


@pytest.fixture
def recipe(tmp_path):
    """A merge of two models with a tensor of every kind: empty, without dimensions, integers, and a tied head."""
    for seed in (1, 2):
        tensors = make_tensors(seed, tied=True, **SIZE)
        tensors |= {"model.count": torch.arange(5), "model.scale": torch.tensor(3.5), "model.none": torch.empty(0, 4)}
        save_model(tmp_path / f"model{seed}", tensors, tie_word_embeddings=True)
    models = [{"model": str(tmp_path / f"model{seed}"), "parameters": {"weight": seed}} for seed in (1, 2)]
    return {"merge_method": "linear", "models": models}


def merged(recipe, out):
    """What the same merge gives in the hub's layout."""
    fastmerge.merge(recipe, out)
    return load_file(out / "model.safetensors")


def assert_loads(folder, tensors, *keys):
    """Let torch load these names, and compare."""
    blank = {name: torch.full_like(tensor, 7) for name, tensor in tensors.items()}
    tree = blank
    for key in reversed(keys):
        tree = {key: tree}
    dcp.load(tree, checkpoint_id=str(folder), no_dist=True)
    for name, tensor in tensors.items():
        assert blank[name].dtype == tensor.dtype and torch.equal(blank[name], tensor), name


@pytest.mark.parametrize(("key", "keys"), [(None, ("model",)), ("", ()), ("app.model", ("app", "model"))])
def test_torch_loads_what_the_hubs_layout_holds(recipe, tmp_path, monkeypatch, key, keys):
    monkeypatch.setattr(chunks, "AT_ONCE", 500)  # several parts of most tensors
    wanted = merged(recipe, tmp_path / "hub")
    fastmerge.merge(recipe, tmp_path / "out", format="dcp", key=key, shard_size=4096, report=key == "")
    assert len(list((tmp_path / "out").glob("*.distcp"))) > 1 and not list((tmp_path / "out").glob("*.safetensors*"))
    assert_loads(tmp_path / "out", wanted | {"lm_head.weight": wanted["model.embed_tokens.weight"]}, *keys)
    assert open_checkpoint(str(tmp_path / "out")).config["tie_word_embeddings"]
    assert fastmerge.verify(tmp_path / "out").ok and fastmerge.verify(tmp_path / "out", sample=3).ok
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    named = with_key(str(tmp_path / "out"), ".".join(keys))
    for folder, status in ((named, 3), (f"{tmp_path}/none::model", 2)):
        assert call("verify", folder, "--recipe", tmp_path / "recipe.yml").exit_code == status
    judged = fastmerge.verify_recipe(recipe, tmp_path / "out")
    others = [(each.name, each.verdict) for each in judged.tensors if each.verdict != "equal"]
    assert others == [("lm_head.weight", "undecided")]
    fastmerge.merge({"merge_method": "passthrough", "models": [{"model": str(tmp_path / "out")}]}, tmp_path / "back")
    back = load_file(tmp_path / "back/model.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in wanted.items())


def test_names_of_a_trainer(recipe, tmp_path):
    (tmp_path / "names.yml").write_text(yaml.safe_dump(NAMES))
    wanted = merged(recipe, tmp_path / "hub")
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump({**recipe, "names": NAMES}))
    result = call("merge", tmp_path / "recipe.yml", tmp_path / "step", "--format", "dcp", "--report")
    assert result.exit_code == 0, result.output
    own = {"tok.weight": wanted["model.embed_tokens.weight"], "norm.weight": wanted["model.norm.weight"]}
    assert_loads(tmp_path / "step", own, "model")
    assert call("verify", tmp_path / "step").exit_code == 0
    again = call("merge", tmp_path / "recipe.yml", tmp_path / "hf")
    assert again.exit_code == 2 and "(leave it out, or merge with --format dcp)" in again.output
    assert call("merge", tmp_path / "recipe.yml", tmp_path / "step2", "--format", "dcp").exit_code == 0
    result = call(
        "average", tmp_path / "step", tmp_path / "step2", tmp_path / "mean", "--format", "dcp", "--key", "",
        "--names", tmp_path / "names.yml",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert_loads(tmp_path / "mean", own)
    assert call("verify", tmp_path / "mean").exit_code == 0


@pytest.fixture
def wide(tmp_path, monkeypatch):
    """Tensors that are written in several chunks, and stored in several parts of no round size."""
    monkeypatch.setattr(chunks, "AT_ONCE", 300_000)
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        shapes = {"a": (301, 403), "b": (7,), "c": (0, 3), "d": (1001, 257), "e": (33, 5, 11)}
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        (tmp_path / f"model{seed}").mkdir()
        save_file(tensors, tmp_path / f"model{seed}" / "model.safetensors")
    models = [{"model": str(tmp_path / f"model{seed}")} for seed in (1, 2)]
    text = yaml.safe_dump({"merge_method": "linear", "models": models, "parameters": {"weight": 1}})
    return make_plan(load(text), state=AsState("model"), shard_size=700_000)


SMALL = RunOptions(threads=2, ram=8 << 20, chunk=65536)


def test_a_merge_that_stops_goes_on(wide, tmp_path, monkeypatch):
    run(wide, tmp_path / "whole", SMALL)
    write, stops, writes = OutputFiles.write, iter(range(1, 100, 3)), 0

    def failing(self, *given):
        nonlocal writes
        writes -= 1
        if writes < 0:
            raise OSError(28, "no space")
        write(self, *given)

    monkeypatch.setattr(OutputFiles, "write", failing)
    finished = 0
    while not (tmp_path / "out").exists():
        writes = next(stops)
        with suppress(OutputError, OSError):
            finished = run(wide, tmp_path / "out", SMALL).resumed
    writes = 1_000_000  # what is left of the last number may not do for another merge
    assert same_files(tmp_path / "out", tmp_path / "whole") and finished
    assert not list(tmp_path.glob(".out*"))
    assert_loads(tmp_path / "out", merged(yaml.safe_load(wide.recipe), tmp_path / "hub"), "model")
    assert fastmerge.verify(tmp_path / "out").ok


def test_ranks_share_it(wide, tmp_path):
    run(wide, tmp_path / "alone", SMALL)
    found = in_threads(3, lambda ranks: run(wide, tmp_path / "out", SMALL, ranks=ranks))
    assert not [each for each in found if isinstance(each, BaseException)], found
    assert same_files(tmp_path / "out", tmp_path / "alone")


def test_damage_is_found_and_what_is_ours_is_replaced(wide, tmp_path):
    out = tmp_path / "out"
    run(wide, out, SMALL)
    entry = open_checkpoint(str(out)).files[-1]
    with open(entry.path, "r+b") as file:
        file.seek(entry.nbytes // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    assert "1 byte differs" in str(fastmerge.verify(out).mismatches)
    with pytest.raises(OutputError, match="exists and is complete, made by this recipe"):
        run(wide, out, SMALL)
    run(wide, out, RunOptions(overwrite=True))
    assert fastmerge.verify(out).ok
    (out / "optimizer.pt").touch()
    with pytest.raises(OutputError, match=r"in the way: optimizer\.pt"):
        run(wide, out, RunOptions(overwrite=True))


def test_only_the_results_of_several_documents(recipe, tmp_path):
    """What another document uses is a folder of the hub."""
    by_itself = {"models": [{"model": "first", "parameters": {"weight": 1}}]}
    (tmp_path / "both.yml").write_text(
        yaml.safe_dump_all([{**recipe, "name": "first"}, {**recipe, "name": "free"}, {**recipe, **by_itself}])
    )
    given = ("-I", tmp_path / "steps", "--format", "dcp", "--key", "app")
    for _ in range(2):
        result = call("multi", tmp_path / "both.yml", tmp_path / "out", *given, "--overwrite")
        assert result.exit_code == 0, result.output
    assert result.output.count("was there already") == 2
    wanted = load_file(tmp_path / "steps/first/model.safetensors")
    for place in ("out", "steps/free"):
        assert_loads(tmp_path / place, wanted, "app")
        assert call("verify", tmp_path / place).exit_code == 0
    assert call("multi", tmp_path / "both.yml", tmp_path / "out", "--key", "app").exit_code == 2


def test_what_is_refused(recipe, tmp_path):
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    for arguments, said in {
        ("--key", "model"): "an output in the hub's layout has none (leave it out, or write dcp)",
        ("--format", "dcp", "--key", "a..b"): "'a..b' is no key",
        ("--format", "dcp", "--push-to-hub", "a/b"): "--push-to-hub takes a folder of the hub",
    }.items():
        result = call("merge", tmp_path / "recipe.yml", tmp_path / "out", *arguments)
        assert result.exit_code == 2 and said in " ".join(result.output.split()), result.output
    with pytest.raises(InvalidInput, match=r"format: is 'pt', expected hf or dcp"):
        fastmerge.merge(recipe, tmp_path / "out", format="pt")
    with pytest.raises(InvalidInput, match=r"names: no entry fits model\.none, model\.scale"):
        fastmerge.merge({**recipe, "names": {"a": "model.count"}}, tmp_path / "out", format="dcp")
    assert not (tmp_path / "out").exists()


def test_a_torch_that_writes_in_another_way(monkeypatch):
    archive.cache_clear()
    monkeypatch.setattr(torch, "save", lambda values, file: file.write(b"something else"))
    with pytest.raises((FastmergeError, ValueError)):
        archive(float32, (3,))
    monkeypatch.delattr("torch.serialization.skip_data")
    with pytest.raises(FastmergeError, match=r"which 2\.6 and later can"):
        archive(float32, (3,))


def test_a_large_tensor_takes_no_memory():
    """Six billion bytes, which zip describes in another way than fewer."""
    archive.cache_clear()
    made = archive(float32, (1_500_000_000,))
    assert len(made.head) + len(made.tail) < 4000 and json.dumps(made.identity)
