"""Averages of checkpoints on disk: bits, counters, recipes, adapters and the command."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from commands import call, call_json
from safetensors.torch import load_file, save_file
from tiny_merges import outputs_of
from tiny_models import make_tensors, save_model

import fastmerge
from fastmerge.averaging import average_of
from fastmerge.errors import InvalidInput
from fastmerge.schedules import schedule_of

COUNT = 70
SIZE = {"hidden": 16, "inner": 24, "vocab": 40, "layers": 1}
COUNTER = "model.norm.num_batches_tracked"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The checkpoints of a run, with what a Trainer leaves beside the weights."""
    folder = tmp_path_factory.mktemp("run")
    base = make_tensors(0, **SIZE)
    for k in range(COUNT):
        path = folder / f"checkpoint-{50 * (k + 1)}"
        tuned = make_tensors(k + 1, base=base)
        save_model(path, {**tuned, COUNTER: torch.tensor(k), "model.seen": torch.tensor([k % 2 == 1, True])})
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json"):
            (path / name).write_bytes(b"{}")
    return folder


def checkpoints(run, count=COUNT) -> list[dict[str, torch.Tensor]]:
    """Return the tensors of the last ones, oldest first."""
    steps = range(50 * (COUNT - count + 1), 50 * COUNT + 1, 50)
    return [load_file(run / f"checkpoint-{step}" / "model.safetensors") for step in steps]


def by_hand(models, weights) -> dict[str, torch.Tensor]:
    """Return the average as a loop makes it: float32, in order, multiply and add rounded separately, rounded once."""
    factors = [float(np.float32(weight)) for weight in weights]
    result = {}
    for name, tensor in models[-1].items():
        if tensor.is_floating_point():
            acc = models[0][name].float() * factors[0]
            for model, factor in zip(models[1:], factors[1:], strict=True):
                acc = acc + model[name].float() * factor
            result[name] = acc.to(tensor.dtype)
        else:
            result[name] = tensor
    return result


def assert_same(out, wanted):
    found = outputs_of(out)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        ("uniform", None), ("uniform", 20), ("linear", 20), ("ema:0.9", 20), ("1-sqrt", 7), ("cosine", 7),
        ("lawa:3", None), ("decay:0.9,0.5", None), ("uniform", 1),
    ],
)  # fmt: skip
def test_bits_are_those_of_a_loop(run, tmp_path, schedule, last):
    read = schedule_of(schedule)
    count = last or read.last or COUNT
    fastmerge.average(run / "checkpoint-*", tmp_path / "out", schedule=schedule, last=last)
    assert_same(tmp_path / "out", by_hand(checkpoints(run, count), read.weights(count)))


def test_weights_and_counts(run, tmp_path):
    names = [run / "checkpoint-100", run / "checkpoint-50"]
    models = [load_file(name / "model.safetensors") for name in names]
    fastmerge.average(names, tmp_path / "weights", weights=[3, 1])
    assert_same(tmp_path / "weights", by_hand(models, [0.75, 0.25]))
    fastmerge.average(names, tmp_path / "counts", counts=[100, 300], dtype="float32")
    wide = [{n: t.float() if t.is_floating_point() else t for n, t in model.items()} for model in models]
    assert_same(tmp_path / "counts", by_hand(wide, [0.25, 0.75]))


def test_counters_are_those_of_the_last_checkpoint(run, tmp_path):
    fastmerge.average(run / "checkpoint-*", tmp_path / "out", last=3)
    assert outputs_of(tmp_path / "out")[COUNTER].item() == COUNT - 1
    recipe = yaml.safe_load((tmp_path / "out" / "mergekit_config.yml").read_text())
    assert recipe["integers"] == "last"
    fastmerge.merge(recipe | {"integers": "first"}, tmp_path / "first")
    assert outputs_of(tmp_path / "first")[COUNTER].item() == COUNT - 3
    del recipe["integers"]
    with pytest.raises(InvalidInput, match="integers: last") as error:
        fastmerge.check(recipe)
    assert {problem.where.rpartition(": ")[2] for problem in error.value.problems} == {COUNTER, "model.seen"}


def test_the_recipe_makes_it_again_and_verify_recomputes_it(run, tmp_path):
    out = tmp_path / "out"
    report = call_json("average", run / "checkpoint-*", out, "--schedule", "ema:0.7", "--last", 5)
    assert report["tensors"] == len(checkpoints(run, 1)[0])
    assert not {"optimizer.pt", "trainer_state.json", "training_args.bin"} & {path.name for path in out.iterdir()}
    assert fastmerge.verify(out).ok
    fastmerge.merge(out / "mergekit_config.yml", tmp_path / "again")
    assert_same(tmp_path / "again", outputs_of(out))
    (item,) = call_json("plan", out / "mergekit_config.yml", "--explain", "model.norm.weight")
    assert [source["parameters"]["weight"] for source in item["sources"]] == schedule_of("ema:0.7").weights(5)
    # Existing outputs are safe.
    assert call("average", run / "checkpoint-*", out).exit_code == 2
    assert call("average", run / "checkpoint-*", out, "--overwrite", "--quiet", "--last", 2).exit_code == 0
    assert_same(out, by_hand(checkpoints(run, 2), [0.5, 0.5]))


def test_the_command_shows_weights_and_recipes(run, tmp_path):
    arguments = ("average", run / "checkpoint-*", tmp_path / "out", "--every", 30, "--schedule", "linear")
    shown = call(*arguments, "--dry-run").stdout
    assert f"{run}/checkpoint-500  " in shown and "0.166667" in shown and "21 merged" not in shown
    recipe = call(*arguments, "--show-recipe").stdout
    assert yaml.safe_load(recipe)["parameters"] == {"normalize": False}
    assert [item["parameters"]["weight"] for item in yaml.safe_load(recipe)["models"]] == [1 / 6, 2 / 6, 3 / 6]
    assert not (tmp_path / "out").exists()
    done = call(*arguments, "--weights", "1,2")
    assert done.exit_code == 2 and "schedule and weights are given" in done.stderr


def test_tiny_weights_are_written_exactly():
    weights = [1e-9, 1 / 3, 1 - 1 / 3 - 1e-9]
    found = average_of(["a", "b", "c"], weights=weights)
    read = [item["parameters"]["weight"] for item in yaml.safe_load(found.recipe)["models"]]
    assert read == list(found.weights) and all(isinstance(weight, float) for weight in read)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1]}, "weights: has 1 values for 2 checkpoints: a, b"),
        ({"counts": [0, 0]}, "counts: the counts are 0, 0"),
        ({"schedule": "ema:2"}, "schedule: 'ema:2' is no schedule"),
        ({"weights": [1, 2], "counts": [1, 2]}, "weights and counts are given, each of which says"),
        ({"schedule": "decay:0.5,0.3"}, "2 factors of a decay are for 3 models; there are 2"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(InvalidInput, match=message):
        average_of(["a", "b"], **options)


def test_folders_without_weights_that_are_read_are_named_with_a_converter(tmp_path):
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}" / f"global_step{step}").mkdir(parents=True)
    with pytest.raises(InvalidInput, match=r"zero_to_fp32\.py") as error:
        fastmerge.average(tmp_path / "checkpoint-*", tmp_path / "out")
    assert len(error.value.problems) == 2


@pytest.fixture
def adapters(tmp_path):
    """A base and LoRA checkpoints of a run on it."""
    base = make_tensors(0, **SIZE)
    save_model(tmp_path / "base", base)
    generator = torch.Generator().manual_seed(3)
    module = "model.layers.0.mlp.up_proj"
    for step in (5, 10):
        folder = tmp_path / f"lora-{step}"
        folder.mkdir()
        factors = {"A": torch.randn(2, 16, generator=generator), "B": torch.randn(24, 2, generator=generator)}
        save_file({f"base_model.model.{module}.lora_{k}.weight": f for k, f in factors.items()},
                  folder / "adapter_model.safetensors")  # fmt: skip
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["up_proj"]}
        config["base_model_name_or_path"] = "o/m"
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path


def test_adapters_are_averaged_on_their_base(adapters):
    with pytest.raises(
        InvalidInput, match=r"is an adapter.*--base, such as o/m; for an adapter, fastmerge merge-adapters"
    ):
        fastmerge.average(adapters / "lora-*", adapters / "out")
    with pytest.raises(InvalidInput, match=r"is an adapter, and .*base is a model"):
        fastmerge.average([adapters / "lora-5", adapters / "base"], adapters / "out")
    with pytest.raises(InvalidInput, match=r"base: is given, but .*base is no adapter"):
        fastmerge.average([adapters / "base"], adapters / "out", base="o/m")
    fastmerge.average(adapters / "lora-*", adapters / "out", base=str(adapters / "base"), dtype="float32")
    base, found = load_file(adapters / "base/model.safetensors"), outputs_of(adapters / "out")
    name = "model.layers.0.mlp.up_proj"
    products = []
    for step in (5, 10):
        stored = load_file(adapters / f"lora-{step}" / "adapter_model.safetensors")
        up, down = (stored[f"base_model.model.{name}.lora_{k}.weight"].double() for k in "BA")
        products.append(up @ down)
    wanted = base[f"{name}.weight"].double() + sum(products) / 2
    assert torch.allclose(found[f"{name}.weight"].double(), wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(found["model.norm.weight"], base["model.norm.weight"].float())
    # Folders with letters that have a meaning in references.
    shutil.move(adapters / "lora-5", adapters / "lora+x@1-5")
    shutil.move(adapters / "lora-10", adapters / "lora+x@1-10")
    fastmerge.average(adapters / "lora+*", adapters / "again", base=str(adapters / "base"), dtype="float32")
    assert_same(adapters / "again", found)
