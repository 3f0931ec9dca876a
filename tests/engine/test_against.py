"""Outputs of mergekit 0.1.5 and of PEFT's merge_and_unload (``tests/data/foreign``), judged by their recipes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import fastmerge
from fastmerge.cli import main
from fastmerge.engine.judging import Tolerance
from fastmerge.errors import CheckpointError, InvalidInput
from fastmerge.steps.inputs import Inputs

DATA = Path(__file__).resolve().parents[1] / "data" / "foreign"
NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(autouse=True)
def there(monkeypatch):
    """Recipes name their models as in the folder that holds them."""
    monkeypatch.chdir(DATA)


@pytest.mark.parametrize(
    ("method", "verdict", "status"),
    [
        ("linear", "within rounding", 0),
        ("task_arithmetic", "within rounding", 0),
        ("ties", "within rounding", 0),
        ("ties_float32", "within rounding", 0),
        ("slerp", "equal", 0),
        ("passthrough", "equal", 0),
        ("dare_ties", "undecided", 3),
    ],
)
def test_outputs_of_mergekit(method, verdict, status):
    result = CliRunner().invoke(main, ["verify", f"merged-{method}", "--recipe", f"{method}.yml", "--json"])
    found = json.loads(result.stdout)
    assert (found["verdict"], result.exit_code) == (verdict, status)
    assert sum(found["counts"].values()) == len(load_file(f"merged-{method}/model.safetensors"))


def test_output_of_merge_and_unload():
    assert fastmerge.verify_recipe("unloaded.yml", "unloaded").verdict == "equal"
    report = fastmerge.verify_recipe("unloaded.yml", "base")
    assert report.verdict == "different" and report.counts == {"equal": 10, "different": 2}


@pytest.mark.parametrize("merged", ["linear", "task_arithmetic", "ties", "slerp"])
@pytest.mark.parametrize("recipe", ["linear", "task_arithmetic", "ties", "slerp"])
def test_another_method_is_told_apart(recipe, merged):
    report = fastmerge.verify_recipe(f"{recipe}.yml", f"merged-{merged}")
    assert (report.verdict == "different") == (recipe != merged)


@pytest.fixture
def edited(tmp_path):
    """A function that writes a copy of mergekit's linear merge with tensors changed; returns its report."""

    def edit(**changes):
        folder = tmp_path / "out"
        shutil.copytree("merged-linear", folder, dirs_exist_ok=True)
        tensors = load_file("merged-linear/model.safetensors")
        for name, tensor in changes.items():
            tensors.pop(name, None)
            tensors |= {} if tensor is None else {name: tensor}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return {item.name: item for item in fastmerge.verify_recipe("linear.yml", folder).tensors}

    return edit


def test_what_is_different_is_named(edited):
    tensor = load_file("merged-linear/model.safetensors")[NAME]
    tensor[3, 5] += 0.01
    found = edited(**{NAME: tensor})
    assert found[NAME].verdict == "different" and "1 of them by more than rounding" in found[NAME].detail
    assert [item.verdict for item in found.values()].count("different") == 1


def test_missing_added_and_reshaped_tensors(edited):
    found = edited(**{NAME: None, "model.norm.weight": torch.zeros(7), "own.weight": torch.zeros(2)})
    assert found[NAME].detail == "is missing"
    assert found["model.norm.weight"].detail == "has shape [7], the merge [32]"
    assert found["own.weight"].detail == "is not in the merge: no input has it"
    assert all(found[name].verdict == "different" for name in (NAME, "model.norm.weight", "own.weight"))


def test_wider_and_nan_values(edited):
    tensors = load_file("merged-linear/model.safetensors")
    assert edited(**{NAME: tensors[NAME].float()})[NAME].verdict == "within rounding"
    tensors[NAME][0, 0] = float("nan")
    assert edited(**{NAME: tensors[NAME]})[NAME].verdict == "different"


@pytest.mark.parametrize("says", [{"tie_word_embeddings": True}, {"text_config": {"tie_word_embeddings": True}}])
def test_a_head_that_is_tied_may_be_missing(edited, tmp_path, says):
    assert edited(**{"lm_head.weight": None})["lm_head.weight"].verdict == "different"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config.pop("tie_word_embeddings")
    (tmp_path / "out" / "config.json").write_text(json.dumps(config | says))
    report = fastmerge.verify_recipe("linear.yml", tmp_path / "out")
    assert report.verdict == "undecided"


def test_the_tolerance_is_a_few_roundings(generator):
    """An error of eight units in the last place of a delta is none of rounding; two of the result are."""
    base = torch.randn(500, generator=generator)
    delta = 0.01 * torch.randn(500, generator=generator)
    inputs = Inputs(base, (base + delta,))
    tolerance = Tolerance.of({"weight": (1.0,), "lambda": 1.0}, 1, torch.float32, torch.float32)
    assert tolerance.allows(base + delta * (1 + 2**-22), base + delta, inputs).all()
    narrow = Tolerance.of({"weight": (1.0,), "lambda": 1.0}, 1, torch.bfloat16, torch.bfloat16)
    merged = base + delta
    assert narrow.allows(merged.bfloat16(), merged, inputs).all()
    assert not narrow.allows(merged + 0.05 * merged.abs() + 0.01, merged, inputs).any()


def test_errors_keep_their_status(tmp_path):
    with pytest.raises(InvalidInput):
        fastmerge.verify_recipe({"merge_method": "linear", "models": [{"model": str(tmp_path)}]}, "merged-linear")
    with pytest.raises(CheckpointError):
        fastmerge.verify_recipe("linear.yml", tmp_path)
    result = CliRunner().invoke(main, ["verify", str(tmp_path), "--recipe", "linear.yml"])
    assert result.exit_code == 2
    assert CliRunner().invoke(main, ["verify", "base", "--recipe", "linear.yml", "--sample", "1"]).exit_code == 2
    result = CliRunner().invoke(main, ["verify", "base", "--recipe", "linear.yml"])
    assert result.exit_code == 1 and "different: lm_head.weight: " in result.stderr


@pytest.mark.parametrize(
    "recipe",
    [
        {"merge_method": "emr", "parameters": {"task": 0}},
        {"merge_method": "ties", "semantics": "paper"},
        {
            "merge_method": "breadcrumbs",
            "parameters": {"weight": 1, "density": 0.3},
            "lines": {"beta": 0, "auto": True},
        },
    ],
    ids=lambda recipe: recipe["merge_method"],
)
def test_what_is_asked_of_the_whole_model_is_asked_here_too(recipe, tmp_path):
    recipe |= {"base_model": "base", "models": ["one", "two"]}
    fastmerge.merge(recipe, tmp_path / "out")
    assert fastmerge.verify_recipe(recipe, tmp_path / "out").verdict == "equal"


@pytest.mark.parametrize("method", ["slerp", "ties", "iso_c"])
def test_a_narrower_dtype_alone_is_that_of_the_result(method, tmp_path):
    # Mergekit rounds inputs to it, which is allowed for, too.
    for name in ("base", "one", "two"):
        shutil.copytree(name, tmp_path / name)
        path = tmp_path / name / "model.safetensors"
        tensors = load_file(path)
        generator = torch.Generator().manual_seed(len(name))
        wide = {key: t.float() * (1 + 1e-3 * torch.rand(t.shape, generator=generator)) for key, t in tensors.items()}
        save_file(wide, path)
    others = {"slerp": ({"t": 0.3}, 1), "ties": ({"weight": 1, "density": 0.3}, 2), "iso_c": ({}, 2)}
    values, count = others[method]
    models = [str(tmp_path / name) for name in ("one", "two")][:count]
    recipe = {"merge_method": method, "base_model": str(tmp_path / "base"), "models": models, "parameters": values}
    fastmerge.merge(recipe | {"dtype": "bfloat16"}, tmp_path / "ours")
    assert fastmerge.verify_recipe(recipe | {"dtype": "bfloat16"}, tmp_path / "ours").verdict == "equal"
    rounded = recipe | {"dtype": "bfloat16", "out_dtype": "bfloat16"}
    fastmerge.merge(rounded, tmp_path / "theirs")
    assert fastmerge.verify_recipe(recipe | {"dtype": "bfloat16"}, tmp_path / "theirs").verdict == "equal"


def test_signs_that_sce_elects_may_hang_on_rounding(tmp_path):
    for name, sign in (("base", 0), ("one", 1), ("two", -1)):
        shutil.copytree(name, tmp_path / name)
        tensors = {key: torch.zeros_like(tensor) for key, tensor in load_file(f"{name}/model.safetensors").items()}
        tensors[NAME] += sign
        save_file(tensors, tmp_path / name / "model.safetensors")
    models = [str(tmp_path / "one"), str(tmp_path / "two")]
    recipe = {"merge_method": "sce", "base_model": str(tmp_path / "base"), "models": models, "dtype": "bfloat16"}
    out = tmp_path / "out"
    fastmerge.merge(recipe, out)
    tensors = load_file(out / "model.safetensors")
    assert tensors[NAME].unique().tolist() == [1]
    for value, verdict in ((-1, "within rounding"), (100, "different")):
        changed = tensors | {NAME: tensors[NAME].clone()}
        changed[NAME][1, 0] = value
        save_file(changed, out / "model.safetensors", metadata={"format": "pt"})
        assert fastmerge.verify_recipe(recipe, out).verdict == verdict


def test_one_element_that_no_choice_gives_is_different(tmp_path):
    fastmerge.merge("ties.yml", tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    tensors = load_file(path)
    tensors[NAME][3, 5] = 100
    save_file(tensors, path, metadata={"format": "pt"})
    counts = fastmerge.verify_recipe("ties.yml", tmp_path / "out").counts
    assert counts == {"equal": len(tensors) - 1, "different": 1}


def test_equal_magnitudes_at_both_thresholds_of_breadcrumbs(tmp_path):
    for name in ("base", "one"):
        shutil.copytree(name, tmp_path / name)
        tensors = {key: torch.zeros_like(tensor) for key, tensor in load_file(f"{name}/model.safetensors").items()}
        if name == "one":
            tensors[NAME][:16], tensors[NAME][16:32], tensors[NAME][32:] = 1, 2, 4
        save_file(tensors, tmp_path / name / "model.safetensors")
    parameters = {"weight": 1, "density": 0.5, "gamma": 0.2}
    recipe = {"merge_method": "breadcrumbs", "base_model": str(tmp_path / "base"), "parameters": parameters}
    recipe["models"] = [str(tmp_path / "one")]
    out = tmp_path / "out"
    fastmerge.merge(recipe, out)
    tensors = load_file(out / "model.safetensors")
    assert tensors[NAME].unique(return_counts=True)[0].tolist() == [0, 1, 2, 4]
    for rows in (slice(0, 16), slice(32, 48)):  # another choice among the 1, and among the 4
        tensors[NAME][rows] = tensors[NAME][rows].flatten().flip(0).view(16, -1)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    assert fastmerge.verify_recipe(recipe, out).verdict == "within rounding"
