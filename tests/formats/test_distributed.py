"""Checkpoints of torch.distributed.checkpoint as inputs: whole and in pieces, their keys, refusals, and merges."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
import sys
import types

import pytest
import torch
import torch.distributed.checkpoint as dcp
from commands import call, call_json
from launching import free_port, in_threads
from make_distributed import DATA, EXPERTS, Q_PROJ, state
from safetensors.torch import load_file
from tiny_merges import same_files
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType

import fastmerge
from fastmerge.averaging import average_of
from fastmerge.checkpoint import open_checkpoint
from fastmerge.checkpoint.joined import Chunk, join
from fastmerge.engine import RunOptions, run
from fastmerge.engine.files import InputFiles
from fastmerge.engine.journal import Journal
from fastmerge.errors import CheckpointError, FastmergeError, OutputError
from fastmerge.plan import make_plan
from fastmerge.recipe import load

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:.*TypedStorage is deprecated")

SMALL = RunOptions(threads=1, ram=8 << 20)


@pytest.fixture
def save(tmp_path):
    """Save a state dict as torch does in one process; return its folder."""

    def saved(tree, name="saved"):
        dcp.save(tree, checkpoint_id=str(tmp_path / name), no_dist=True)
        return tmp_path / name

    return saved


def values(place) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint, read by their addresses."""
    checkpoint = open_checkpoint(str(place))
    found = {}
    with InputFiles(checkpoint.files) as files:
        files.open()
        for name, entry in checkpoint.tensors.items():
            data = bytearray(entry.nbytes)
            files.read(entry.path, entry.offset, memoryview(data))
            flat = torch.frombuffer(data, dtype=entry.dtype.torch) if data else torch.empty(0, dtype=entry.dtype.torch)
            found[name] = flat.reshape(entry.shape)
    return found


def same(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize(("folder", "step"), [("step-1", 1), ("step-2", 2), ("step-2::app.model", 2), ("hf-2", 2)])
def test_what_four_processes_saved(folder, step):
    same(values(DATA / folder), state(step))


@pytest.mark.parametrize("folder", ["step-1", "hf-2"])
def test_any_range_of_a_tensor_in_pieces(folder):
    """Elements are read wherever a range begins and ends: within a row, over rows, over pieces."""
    checkpoint = open_checkpoint(str(DATA / folder))
    expected = values(DATA / folder)
    with InputFiles(checkpoint.files) as files:
        files.open()
        for name in (Q_PROJ, EXPERTS, "model.embed_tokens.weight"):
            entry, flat = checkpoint.tensors[name], expected[name].reshape(-1).view(torch.uint8).numpy().tobytes()
            for start in range(entry.nbytes):
                for stop in {start + 1, start + 7, start + 26, entry.nbytes}:
                    part = bytearray(min(stop, entry.nbytes) - start)
                    files.read(entry.path, entry.offset + start, memoryview(part))
                    assert part == flat[start:stop], (name, start, stop)


def test_narrow_and_wide_columns(tmp_path, monkeypatch):
    """Columns are read row by row where they are wide, many rows at a time where they are not."""
    matrix = torch.arange(12 * 10, dtype=torch.uint8).view(12, 10)
    cuts = [(0, 3), (3, 4), (7, 3)]
    (tmp_path / "f").write_bytes(b"".join(matrix[:, at : at + n].contiguous().numpy().tobytes() for at, n in cuts))
    places = [0, 36, 84]
    chunks = [Chunk((0, at), (12, n), str(tmp_path / "f"), o) for (at, n), o in zip(cuts, places, strict=True)]
    layout = [join((12, 10), 1, chunks, 4096)]

    def read(path, offset, into):
        with open(path, "rb") as file:
            file.seek(offset)
            assert file.readinto(into) == len(into)

    for direct, buffer in ((1 << 16, 1 << 18), (1 << 16, 8), (4, 8), (1, 8)):
        monkeypatch.setattr("fastmerge.checkpoint.joining._DIRECT", direct)
        monkeypatch.setattr("fastmerge.checkpoint.joining._BUFFER", buffer)
        found = bytearray(120)
        fastmerge.checkpoint.joining.read_joined(layout, 4096, memoryview(found), read)
        assert found == matrix.numpy().tobytes()


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [
        ((4, 2), [((0, 0), (2, 2))]),  # a hole at the end
        ((4, 2), [((0, 0), (2, 2)), ((3, 0), (1, 2))]),  # a hole between
        ((4, 2), [((0, 0), (3, 2)), ((2, 0), (2, 2))]),  # an overlap
        ((4, 2), [((0, 0), (4, 1)), ((0, 0), (4, 1))]),  # twice the same
        ((4, 2), [((0, 0), (2, 2)), ((2, 0), (2, 1))]),  # a hole in a band
        ((2, 1 << 20, 2, 2), [((0, 0, i, j), (2, 1 << 20, 1, 1)) for i in (0, 1) for j in (0, 1)]),  # too many
    ],
)
def test_chunks_that_are_no_tensor(shape, chunks):
    with pytest.raises(ValueError, match=r"do not fill the shape|more than 65536 pieces"):
        join(shape, 2, [Chunk(offsets, sizes, "f", 0) for offsets, sizes in chunks], 0)


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        (lambda m: m, ""),
        (lambda m: {"model": m, "step": 3}, "model"),
        (lambda m: {"app": {"model": m, "optim": {"state": m, "lr": 0.1}}}, "app.model"),
        (lambda m: {"state": {"model": m}, "optimizer": m, "lr_scheduler": m, "rng": torch.ones(3)}, "state.model"),
        (lambda m: {"net": {f"_orig_mod.{name}": tensor for name, tensor in m.items()}}, "net"),
    ],
)
def test_the_key_that_holds_the_model(save, tree, key):
    """Names that begin with ``model.`` themselves keep it: the mapping in the metadata says what is a key."""
    model = state(1)
    folder = save(tree(model))
    same(values(folder), model)
    if key and key != "net":
        same(values(f"{folder}::{key}"), model)


def test_the_largest_of_several_keys_is_meant(save):
    place = save({"app": {"net": {"a.weight": torch.ones(40)}}, "lists": [torch.ones(2), torch.ones(2)]})
    with pytest.raises(CheckpointError, match=r"app\.net, lists \(name the model's: .*::app\.net\)"):
        open_checkpoint(str(place))


def test_a_tensor_that_is_not_contiguous(save):
    place = save({"model": {"a": torch.ones(2, 3).t()}})
    with pytest.raises(CheckpointError, match=r"as \.t\(\) leaves it \(call \.contiguous\(\) before saving\)"):
        open_checkpoint(str(place))


def test_several_keys(save):
    one, two = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    folder = save({"model": one, "ema": two})
    with pytest.raises(CheckpointError, match=r"under several keys: ema, model \(name the model's: .*::model\)"):
        open_checkpoint(str(folder))
    same(values(f"{folder}::ema"), two)
    with pytest.raises(CheckpointError, match="no tensors under the key emma; there are ema, model"):
        open_checkpoint(f"{folder}::emma")
    with pytest.raises(CheckpointError, match="no tensors of a model"):
        open_checkpoint(str(save({"optim": one, "step": 3}, "optim")))
    with pytest.raises(
        CheckpointError, match=r"is no checkpoint of torch.distributed.checkpoint, so it has no key model"
    ):
        open_checkpoint(f"{DATA}::model")


def test_average_of_a_run(tmp_path):
    """Bits are those of a loop in float32; verified, and the same from a pattern with a key."""
    fastmerge.average(f"{DATA}/step-*", tmp_path / "out", dtype="float32")
    expected = {
        name: first.float() * 0.5 + last.float() * 0.5 if first.is_floating_point() else last
        for (name, first), last in zip(state(1).items(), state(2).values(), strict=True)
    }
    same(load_file(tmp_path / "out" / "model.safetensors"), expected)
    assert "every bit as recomputed" in call("verify", tmp_path / "out").output
    said = call("average", f"{DATA}/step-*::app.model", tmp_path / "again", "--dtype", "float32").output
    assert "has no config.json" in said and "put the config.json" in " ".join(said.split())
    same(load_file(tmp_path / "again" / "model.safetensors"), expected)
    assert "every bit as recomputed" in call("verify", tmp_path / "again").output


def test_a_greedy_soup_scores_models_that_can_be_loaded(tmp_path):
    seen = []

    def score(folder) -> float:
        seen.append(load_file(f"{folder}/model.safetensors")["model.one.weight"])
        return -float(seen[-1].square().sum())

    fastmerge.greedy_soup([f"{DATA}/step-1", f"{DATA}/step-2"], tmp_path / "soup", score)
    assert torch.equal(seen[0], state(1)["model.one.weight"]) and torch.equal(seen[1], state(2)["model.one.weight"])


def test_commands(tmp_path):
    shown = call_json("inspect", DATA / "step-1")
    assert shown["tensors"].keys() == state(1).keys() and shown["tensors"][Q_PROJ]["bytes"] == 72
    found = call_json("diff", DATA / "step-2", DATA / "hf-2")
    assert all(row["changed"] == 0 for row in found["tensors"])


@pytest.fixture
def broken(tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(DATA / "step-1", folder)
    return folder


def test_files_that_are_missing_or_cut(broken):
    whole = (broken / "__2_0.distcp").read_bytes()
    (broken / "__2_0.distcp").write_bytes(whole[:3000])
    with pytest.raises(
        CheckpointError, match=r"__2_0.distcp: its bytes .* lie behind the end of the file \(the checkpoint"
    ):
        open_checkpoint(str(broken))
    (broken / "__2_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"__2_0.distcp: is missing; it should hold"):
        open_checkpoint(str(broken))


def test_a_shard_of_safetensors_is_missing(tmp_path):
    shutil.copytree(DATA / "hf-2", tmp_path / "hf")
    (tmp_path / "hf" / "shard-00002-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match="chunks do not fill the shape"):
        open_checkpoint(str(tmp_path / "hf"))


def test_a_file_that_changes(broken):
    checkpoint = open_checkpoint(str(broken))
    (broken / "__1_0.distcp").write_bytes(b"x")
    with pytest.raises(FastmergeError, match=r"__1_0.distcp: changed since"):
        InputFiles(checkpoint.files).open()


class _Runs:
    def __reduce__(self):
        return (open, ("ran", "w"))


def test_pickles_are_not_run(broken, monkeypatch):
    monkeypatch.chdir(broken)
    (broken / ".metadata").write_bytes(pickle.dumps({"state_dict_metadata": _Runs()}))
    with pytest.raises(CheckpointError, match=r".metadata: it holds _?io.open, which is not loaded"):
        open_checkpoint(str(broken))
    assert not (broken / "ran").exists()


def test_megatrons_own_metadata(save, monkeypatch):
    """Versions up to 0.15 pickle a class of their own, and plans of the ranks with it."""
    kind = "megatron.core.dist_checkpointing.strategies.torch"
    own = types.ModuleType(kind)
    own.MCoreMetadata = dataclasses.make_dataclass("MCoreMetadata", [("mcore_data", dict, None)], bases=(Metadata,))
    own.MCoreSavePlan = dataclasses.make_dataclass(
        "MCoreSavePlan", [("mcore_data", dict, None)], bases=(SavePlan,), frozen=True
    )
    for given in (own.MCoreMetadata, own.MCoreSavePlan):
        given.__module__ = kind
    for name in ["megatron", "megatron.core", "megatron.core.dist_checkpointing"]:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, kind, own)
    model = {f"decoder.{name}": tensor for name, tensor in state(1).items()}
    folder = save({**model, "chained_0.optimizer.state.exp_avg.decoder.w": torch.ones(2), "rng_state/shard_0_1": b"x"})
    written = pickle.loads((folder / ".metadata").read_bytes())
    item = WriteItem(MetadataIndex("w"), WriteItemType.BYTE_IO)
    found = own.MCoreMetadata(**vars(written), mcore_data={"decoder.w": {"nd_reformulated_orig_global_shape": (2, 3)}})
    found.all_local_plans = [own.MCoreSavePlan([item], mcore_data={})]
    (folder / ".metadata").write_bytes(pickle.dumps(found))
    same(values(folder), model)


def test_several_ranks_share_an_average(tmp_path, monkeypatch):
    """The bytes of one process, from checkpoints in pieces; and a run of ranks goes on with what others finished."""
    fastmerge.average(f"{DATA}/step-*", tmp_path / "alone", schedule="ema:0.9", shard_size=100)
    recipe = average_of([f"{DATA}/step-*"], schedule="ema:0.9").recipe
    plan = make_plan(load(recipe), shard_size=100)
    out = tmp_path / "out"

    def failing(self, output, sums):
        if self.checksums:
            raise OutputError("the disk is full")
        finished(self, output, sums)
        self.flush()

    finished = Journal.finished
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finished", failing)
        failed = in_threads(2, lambda one: run(plan, out, SMALL, ranks=one))
        assert all(isinstance(error, FastmergeError) for error in failed) and not out.exists()
    assert not any(
        isinstance(one, BaseException) for one in in_threads(3, lambda one: run(plan, out, SMALL, ranks=one))
    )
    assert same_files(out, tmp_path / "alone")


def test_the_command_shares_an_average(tmp_path, monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, str(value))
    done = call("average", f"{DATA}/step-*", tmp_path / "out", "--distributed")
    assert done.exit_code == 0 and fastmerge.verify(tmp_path / "out").ok
    refused = call("average", f"{DATA}/step-*", tmp_path / "out", "--distributed", "--greedy", "true")
    assert refused.exit_code == 2 and "--distributed and --greedy" in refused.output
