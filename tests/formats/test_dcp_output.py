"""Models as checkpoints of torch.distributed.checkpoint: read by torch itself, by names of a trainer, and back."""

from __future__ import annotations

import errno
import json
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from commands import call, call_json
from make_distributed import DATA, save_parts, state
from safetensors.torch import load_file, save_file
from tiny_models import make_tensors, save_model

import fastmerge
from fastmerge.checkpoint import open_checkpoint
from fastmerge.checkpoint.distributed import chunks
from fastmerge.checkpoint.distributed.tables import NamesError, table_of
from fastmerge.conversion import to_dcp, to_hub
from fastmerge.errors import CheckpointError, InvalidInput, OutputError
from fastmerge.plan.types import PiecedFile, Range

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:.*TypedStorage is deprecated")

SIZE = {"hidden": 16, "inner": 24, "vocab": 40, "layers": 1}
NAMES = {
    "tok.weight": "model.embed_tokens.weight",
    "blocks.{i}.attn.{p}.weight": "model.layers.{i}.self_attn.{p}_proj.weight",
    "blocks.{i}.{rest*}": "model.layers.{i}.{rest*}",
    "head.weight": "lm_head.weight",
    "norm.{kind}": "model.norm.{kind}",
}


@pytest.fixture
def model(tmp_path):
    """A model of the hub with a tensor of every kind: empty, without dimensions, integers."""
    tensors = make_tensors(1, **SIZE)
    tensors |= {"model.count": torch.arange(5), "model.scale": torch.tensor(3.5), "model.none": torch.empty(0, 4)}
    save_model(tmp_path / "model", tensors)
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    return tmp_path / "model", tensors


def loaded(folder, tensors, key="model"):
    """What DCP itself loads into tensors of these shapes."""
    blank = {name: torch.full_like(tensor, 7) for name, tensor in tensors.items()}
    dcp.load({key: blank} if key else blank, checkpoint_id=str(folder), no_dist=True)
    return blank


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("key", [None, "", "app.model"])
def test_torch_reads_it(model, tmp_path, key, monkeypatch):
    monkeypatch.setattr(chunks, "AT_ONCE", 500)  # several chunks of most tensors
    folder, tensors = model
    seen = []
    report = to_dcp(folder, tmp_path / "out", key=key, shard_size=4096, progress=lambda *at: seen.append(at))
    assert seen[-1][0] == seen[-1][1] and report.tensors == len(tensors)
    assert len(list((tmp_path / "out").glob("*.distcp"))) > 1
    if key == "app.model":
        blank = {name: torch.full_like(tensor, 7) for name, tensor in tensors.items()}
        dcp.load({"app": {"model": blank}}, checkpoint_id=str(tmp_path / "out"), no_dist=True)
        same(blank, tensors)
    else:
        same(loaded(tmp_path / "out", tensors, "model" if key is None else key), tensors)
    back = open_checkpoint(str(tmp_path / "out"))
    assert (
        back.config == json.loads((folder / "config.json").read_text()) and (tmp_path / "out/tokenizer.json").exists()
    )
    to_hub(tmp_path / "out", tmp_path / "back")
    same(load_file(tmp_path / "back/model.safetensors"), tensors)
    blank = {name: torch.full_like(tensor, 7) for name, tensor in tensors.items()}
    dcp.load(blank, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path / "back")), no_dist=True)
    same(blank, tensors)


def test_names_of_a_trainer_and_back(model, tmp_path):
    folder, tensors = model
    tensors = {name: tensor for name, tensor in tensors.items() if name in make_tensors(1, **SIZE)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    shown = call("convert", folder, tmp_path / "out", "--to", "dcp", "--names", tmp_path / "names.json").output
    assert f"merged {len(tensors)} tensors" in shown and fastmerge.verify(tmp_path / "out").ok
    found = call_json("diff", folder, tmp_path / "out", "--names", tmp_path / "names.json")
    assert found["total"]["equal"] == found["total"]["tensors"] == len(tensors)
    assert call("diff", folder, folder, "--names", tmp_path / "names.json").exit_code == 2
    own = open_checkpoint(str(tmp_path / "out")).tensors
    assert {"tok.weight", "blocks.0.attn.q.weight", "blocks.0.mlp.up_proj.weight", "head.weight"} <= own.keys()
    (tmp_path / "out/config.json").unlink()
    arguments = ("--names", tmp_path / "names.json", "--config", folder, "--dtype", "float32")
    result = call("convert", tmp_path / "out", tmp_path / "back", "--to", "hf", *arguments)
    assert result.exit_code == 0, result.output
    same(load_file(tmp_path / "back/model.safetensors"), {name: tensor.float() for name, tensor in tensors.items()})
    assert json.loads((tmp_path / "back/config.json").read_text())["torch_dtype"] == "float32"
    assert (tmp_path / "back/tokenizer.json").exists()
    assert fastmerge.verify(tmp_path / "back").ok


def test_looks_under_the_names_of_the_hub(tmp_path):
    """The report of an analysis drafts a recipe that has the table, too."""
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    for seed, name in enumerate(("base", "one")):
        save_model(tmp_path / name, make_tensors(seed, **SIZE))
        to_dcp(tmp_path / name, tmp_path / f"run-{name}", names=NAMES)
        (tmp_path / f"run-{name}" / "config.json").unlink()
    given = ("--names", tmp_path / "names.json", "--config", tmp_path / "base")
    found, stored = (call_json("inspect", tmp_path / place, *given[:n]) for place, n in (("run-one", 4), ("one", 0)))
    assert found["folder"] == str(tmp_path / "run-one") and found["config"] == stored["config"]
    assert found["layers"] == stored["layers"] == {"model.layers": 1}
    assert found["tensors"].keys() == stored["tensors"].keys()
    assert call("inspect", tmp_path / "one", *given).exit_code == 2
    runs = (f"{tmp_path}/run-one::model", "--base", tmp_path / "run-base", *given)
    assert call("analyze", *runs, "--out", tmp_path / "of-runs").exit_code == 0
    assert call("analyze", tmp_path / "one", "--base", tmp_path / "base", "--out", tmp_path / "of-hub").exit_code == 0
    tables = [(tmp_path / place / "tensors.csv").read_text() for place in ("of-runs", "of-hub")]
    assert tables[0].replace("run-one::model", "one") == tables[1]
    assert call("check", tmp_path / "of-runs/recipe.yml").exit_code == 0


def test_names_left_over_or_given_twice(model, tmp_path):
    folder, _ = model
    wrong = NAMES | {
        "head.weight": "lm_head.weigth",
        "a": "model.scale",
        "b.{x}": "model.coun{x}",
        "b.t2": "model.none",
    }
    with pytest.raises(InvalidInput, match=r"names: no entry fits lm_head.weight \(the entry lm_head.weigth fits"):
        to_dcp(folder, tmp_path / "out", names=wrong)
    twice = {"one": "model.count", "on{x}": "model.scal{x}", "{a*}": "{a*}"}
    with pytest.raises(InvalidInput, match=r"model.count and model.scale both become one \(give each a name"):
        to_dcp(folder, tmp_path / "out", names=twice)
    with pytest.raises(NamesError) as error:
        table_of(twice).to_trainer(["model.count", "model.scale"], "a")
    sent = pickle.loads(pickle.dumps(error.value))
    assert str(sent) == str(error.value) == f"a: names: {sent.fault}"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({}, "expected the trainer's name"),
        (
            {"a.{i}": "b.{j}", "x.{i}.{i}": "y"},
            r"a.\{i\}: b.\{j\} has \{i\}, \{j\} on one side.*names a placeholder twice",
        ),
        ({"a": 3}, "'a': 3 is no entry"),
        ({"{a}{b*}": "{a}.{b*}"}, r"has no text between \{a\} and \{b\}"),
        ({".".join(f"{{a{i}}}" for i in range(7)): "b"}, "more than 6 placeholders"),
    ],
)
def test_tables_that_are_none(table, match):
    recipe = {"merge_method": "linear", "models": [{"model": f"{DATA}/step-1", "parameters": {"weight": 1}}]}
    with pytest.raises(InvalidInput, match=match):
        fastmerge.check(recipe | {"names": table})


def test_a_table_that_does_not_fit_is_one_error_for_a_whole_window():
    with pytest.raises(InvalidInput, match=r"step-1: names: no entry fits model\.") as error:
        fastmerge.average(f"{DATA}/step-*", "out", names={"w": "w"})
    assert len(error.value.problems) == 1


def test_states_of_averages_are_not_the_model(tmp_path):
    """They lie beside it, and each is a model by its own key."""
    layer = torch.nn.Linear(3, 2)
    averager = fastmerge.Averager(layer, {"slow": "ema:0.5"})
    for _ in range(2):
        averager.update()
        torch.nn.init.ones_(layer.weight)
    dcp.save({"model": layer.state_dict(), "averager": averager}, checkpoint_id=str(tmp_path / "run"), no_dist=True)
    key = f"{tmp_path}/run::averager.averages.slow.kept.0"
    for place, expected in ((tmp_path / "run", layer.state_dict()), (key, averager.weights())):
        assert call("convert", place, tmp_path / "out", "--to", "hf", "--overwrite").exit_code == 0
        same(load_file(tmp_path / "out/model.safetensors"), expected)


def test_names_of_models_that_have_the_hubs(model):
    folder, _ = model
    recipe = {"merge_method": "linear", "models": [{"model": str(folder), "parameters": {"weight": 1}}]}
    with pytest.raises(InvalidInput, match=r"is of checkpoints of torch\.distributed\.checkpoint, and no model"):
        fastmerge.check(recipe | {"names": NAMES})


@pytest.mark.parametrize("megatron", [False, True])
def test_an_average_goes_back_into_a_checkpoint_of_its_run(tmp_path, megatron):
    """Names and other items are those of a checkpoint of the run; states of optimizers are left out."""
    trees = {}
    for step in (1, 2):
        own = state(step)
        if megatron:  # torch_dist: no key, stacked layers, states of optimizers by their own prefixes
            tree = {f"decoder.{name}": tensor for name, tensor in own.items()}
            tree |= {
                "optimizer.state.fp32_param.decoder.w": torch.ones(3),
                "chained_0.optimizer.state.x": torch.ones(2),
            }
            tree |= {"rng_state/shard_0_1": {"seed": step}, "decoder._extra_state/shard_0_1": {"amax": step}}
        else:
            tree = {"app": {"model": {f"_orig_mod.{name}": t for name, t in own.items()}, "optim": own, "step": step}}
            tree |= {"rng": torch.full((3,), step), "none": torch.empty(0, 2)}
        folder = tmp_path / f"iter_{step}"
        dcp.save(tree, checkpoint_id=str(folder), no_dist=True)
        for name in ("metadata.json", "common.pt") if megatron else ():
            (folder / name).write_text(f'{{"sharded_backend": "torch_dist", "step": {step}}}')
        trees[step] = tree
    key = "" if megatron else "::app.model"
    assert call("average", f"{tmp_path}/iter_*{key}", tmp_path / "mean", "--dtype", "float32").exit_code == 0
    assert fastmerge.verify(tmp_path / "mean").ok
    mean = load_file(tmp_path / "mean/model.safetensors")
    like = ("--like", f"{tmp_path}/iter_2{key}")
    shown = call("convert", tmp_path / "mean", tmp_path / "out", "--to", "dcp", *like).output
    assert f"{2 if megatron else 3} other items of {tmp_path}/iter_2 are taken over" in shown
    assert "items of optimizers in" in shown and fastmerge.verify(tmp_path / "out").ok
    average = ("average", f"{tmp_path}/iter_*{key}", "--dtype", "float32", "--format", "dcp", *like)
    assert call(*average[:2], tmp_path / "direct", *average[2:]).exit_code == 0
    for name in ("__0_0.distcp", "__1_0.distcp", ".metadata"):
        assert (tmp_path / "direct" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    if megatron:
        blank = {name: torch.empty_like(tensor) for name, tensor in mean.items()}
        blank |= {name: {next(iter(v)): 0} for name, v in trees[2].items() if isinstance(v, dict)}
        dcp.load(blank, checkpoint_id=str(tmp_path / "out"), no_dist=True)
        assert blank.pop("rng_state/shard_0_1") == {"seed": 2}
        assert blank.pop("decoder._extra_state/shard_0_1") == {"amax": 2}
        assert "2" in (tmp_path / "out/common.pt").read_text() and (tmp_path / "out/metadata.json").exists()
        same(blank, mean)
    else:
        blank = {f"_orig_mod.{name}": torch.empty_like(tensor) for name, tensor in mean.items()}
        whole = {
            "app": {"model": blank, "step": 0},
            "rng": torch.zeros(3, dtype=torch.int64),
            "none": torch.empty(0, 2),
        }
        dcp.load(whole, checkpoint_id=str(tmp_path / "out"), no_dist=True)
        assert whole["app"]["step"] == 2 and torch.equal(whole["rng"], torch.full((3,), 2))
        same({name.removeprefix("_orig_mod."): tensor for name, tensor in blank.items()}, mean)


def test_a_head_that_is_the_embedding(tmp_path):
    """It is stored once for the hub; a checkpoint of a trainer may have both."""
    tensors = make_tensors(1, **SIZE, tied=True)
    save_model(tmp_path / "model", tensors, tie_word_embeddings=True)
    to_dcp(tmp_path / "model", tmp_path / "out")
    both = tensors | {"lm_head.weight": torch.zeros_like(tensors["model.embed_tokens.weight"])}
    dcp.save({"model": both}, checkpoint_id=str(tmp_path / "run"), no_dist=True)
    to_dcp(tmp_path / "model", tmp_path / "like", like=tmp_path / "run")
    for place in ("out", "like"):
        same(loaded(tmp_path / place, both), both | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    dcp.save({"model": tensors}, checkpoint_id=str(tmp_path / "once"), no_dist=True)
    to_dcp(tmp_path / "model", tmp_path / "like-once", like=tmp_path / "once")
    assert open_checkpoint(str(tmp_path / "like-once")).tensors.keys() == tensors.keys()


@pytest.mark.parametrize("at_once", [300, chunks.AT_ONCE])
def test_tensors_in_pieces_are_compared_by_their_bytes(tmp_path, monkeypatch, at_once):
    """A head that is no copy of the embedding is kept; integers that differ are refused."""
    monkeypatch.setattr(chunks, "AT_ONCE", at_once)
    own = make_tensors(1, **SIZE)
    own |= {"lm_head.weight": own["model.embed_tokens.weight"].clone(), "model.count": torch.arange(500)}
    changed = {name: own[name].clone() for name in ("lm_head.weight", "model.count")}
    for tensor in changed.values():
        tensor.view(-1)[-1] += 1
    for name, tensors in (("copy", own), ("differs", own | changed)):
        save_model(tmp_path / f"{name}-hub", tensors, tie_word_embeddings=True)
        to_dcp(tmp_path / f"{name}-hub", tmp_path / name)
        recipe = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / name)}]}
        kept = {output.name for output in fastmerge.check(recipe).outputs}
        assert own.keys() - kept == ({"lm_head.weight"} if name == "copy" else set())
    both = [{"model": str(tmp_path / name), "parameters": {"weight": 1}} for name in ("copy", "differs")]
    with pytest.raises(InvalidInput, match=r"model\.count: a tensor of int64 differs between the models"):
        fastmerge.check({"merge_method": "linear", "models": both})


def test_two_keys_of_one_folder_in_pieces(tmp_path):
    """Both models have addresses behind one ``.metadata``: none may be taken for the other's."""
    generator = torch.Generator().manual_seed(0)
    models = {
        key: {name: torch.randn(8, 4, generator=generator) for name in ("a.weight", "b.weight")}
        for key in ("ema", "model")
    }
    every = {(key, name): tensor for key, tensors in models.items() for name, tensor in tensors.items()}
    save_parts(tmp_path / "run", every, [5, 3])
    one, other = (f"{tmp_path}/run::{key}" for key in models)
    both = [{"model": place, "parameters": {"weight": 1}} for place in (one, other)]
    fastmerge.merge({"merge_method": "linear", "parameters": {"normalize": False}, "models": both}, tmp_path / "out")
    ema, model = models.values()
    same(load_file(tmp_path / "out/model.safetensors"), {name: ema[name] + model[name] for name in ema})
    found = fastmerge.diff(one, other)
    assert found.equal == 0 and abs(found.cosine) < 1


def test_a_pattern_of_another_model(model, tmp_path):
    folder, tensors = model
    dcp.save({"model": tensors}, checkpoint_id=str(tmp_path / "run"), no_dist=True)
    other = {name: tensor for name, tensor in tensors.items() if name != "model.count"}
    other |= {"model.cuont": tensors["model.count"], "model.none": torch.empty(0, 5)}
    save_model(tmp_path / "other", other)
    with pytest.raises(InvalidInput) as error:
        to_dcp(tmp_path / "other", tmp_path / "out", like=tmp_path / "run")
    for part in (
        r"the output lacks model.count (did you mean model.cuont?)",
        "model.none is [0, 5], and [0, 4] in",
        "--names",
    ):
        assert part in str(error.value)
    with pytest.raises(InvalidInput, match=r"key: is 'x', and .*run holds its model under 'model' \(leave it out"):
        to_dcp(folder, tmp_path / "out", like=tmp_path / "run", key="x")
    with pytest.raises(InvalidInput, match=r"like: .*/model: has no \.metadata"):
        to_dcp(folder, tmp_path / "out", like=folder)


def test_weights_beside_a_pattern_stay_there(model, tmp_path):
    """Whoever opens the output would read the old weights, which the hub's layout has, in place of the new ones."""
    folder, tensors = model
    dcp.save({"model": tensors}, checkpoint_id=str(tmp_path / "run"), no_dist=True)
    save_file({"a": torch.zeros(1)}, tmp_path / "run/model.safetensors")
    for name in ("common.pt", "scheduler.bin", "model.safetensors.index.json", "pytorch_model-00001-of-00002.bin"):
        (tmp_path / "run" / name).write_bytes(b"{}")
    to_dcp(folder, tmp_path / "out", like=tmp_path / "run")
    assert open_checkpoint(str(tmp_path / "out")).tensors.keys() == tensors.keys()
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"common.pt", "scheduler.bin"} < found and not {"model.safetensors", name} & found


def test_a_pattern_that_lost_an_item(model, tmp_path):
    """It is still a model to read; as a pattern it would lose the item in silence."""
    folder, tensors = model
    tree = {"model": tensors, "step": 3, "optimizer": {"step": 3}}
    dcp.save(tree, checkpoint_id=str(tmp_path / "run"), no_dist=True)
    path = tmp_path / "run/.metadata"
    whole = pickle.loads(path.read_bytes())
    for name in ("optimizer.step", "step"):
        whole.storage_data = {at: place for at, place in whole.storage_data.items() if at.fqn != name}
        path.write_bytes(pickle.dumps(whole))
        if name == "optimizer.step":
            result = call("convert", folder, tmp_path / "out", "--to", "dcp", "--like", tmp_path / "run")
            assert result.exit_code == 0 and "1 other item of" in result.output
    with pytest.raises(InvalidInput, match=r"run/\.metadata: no file holds step \(save or copy"):
        to_dcp(folder, tmp_path / "other", like=tmp_path / "run")
    assert open_checkpoint(str(tmp_path / "run")).tensors.keys() == tensors.keys()


def test_nothing_partial(model, tmp_path, monkeypatch):
    """A disk that fills up while what another checkpoint holds is taken over leaves nothing under the name of OUT."""
    folder, tensors = model
    dcp.save({"model": tensors, "rng": torch.arange(4000)}, checkpoint_id=str(tmp_path / "run"), no_dist=True)
    read, before = PiecedFile.open, {path.name for path in tmp_path.iterdir()}

    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PiecedFile, "open", full)
    with pytest.raises(OutputError, match=r"__1_0\.distcp: no space left on the disk"):
        to_dcp(folder, tmp_path / "out", like=tmp_path / "run")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(PiecedFile, "open", read)
    assert to_dcp(folder, tmp_path / "out", like=tmp_path / "run").resumed == len(tensors)
    assert {path.name for path in tmp_path.iterdir()} == before | {"out"}
    with pytest.raises(OutputError, match="exists and is complete"):
        to_dcp(folder, tmp_path / "out", like=tmp_path / "run")
    assert call("convert", folder, tmp_path / "out", "--to", "dcp", "--overwrite").exit_code == 0
    for options in (["--to", "hf", "--like", folder], ["--to", "dcp", "--type", "f16"], []):
        assert call("convert", folder, tmp_path / "other", *options).exit_code == 2
    result = call("convert", folder, tmp_path / "run", "--to", "dcp", "--like", tmp_path / "run", "--overwrite")
    assert result.exit_code == 2 and "not written by fastmerge" in result.output


def test_what_is_taken_over_is_copied_in_files_of_shard_size(tmp_path):
    data = bytes(range(256)) * 9
    (tmp_path / "a").write_bytes(data)
    file = PiecedFile((b"head", Range(str(tmp_path / "a"), 7, 2000), b"", b"x", Range(str(tmp_path / "a"), 0, 3)))
    with file.open() as source:
        assert source.read() == b"head" + data[7:2007] + b"x" + data[:3]
    assert file.sources == (str(tmp_path / "a"),)
    with (
        PiecedFile((Range(str(tmp_path / "a"), 2300, 9),)).open() as source,
        pytest.raises(CheckpointError, match="ends 5 bytes"),
    ):
        source.read()


def test_neighbours_in_pieces_of_whole_pages(tmp_path):
    """Their addresses have no gap between them, and small neighbours are read in one go."""
    tensors = {f"norm{i}": torch.randn(32, 32) for i in range(3)}
    save_parts(tmp_path / "run", {(name,): tensor for name, tensor in tensors.items()}, [20, 12])
    models = [{"model": str(tmp_path / "run"), "parameters": {"weight": 1}}]
    fastmerge.merge({"merge_method": "linear", "models": models}, tmp_path / "out")
    same(load_file(tmp_path / "out/model.safetensors"), tensors)
