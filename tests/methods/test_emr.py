"""EMR merging by hand, and its artifacts on disk."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import make_tensors, save_model

from fastmerge import emr, functional, merge_state_dicts
from fastmerge.errors import CheckpointError, FastmergeError, InvalidInput, OutputError

BASE = torch.ones(4)
A, B = torch.tensor([4.0, -3.0, 0.5, 1.0]), torch.tensor([-1.0, 2.0, 0.0, -1.0])
# Sums 3, -1, 0.5 and 0, which counts as -: the unified delta.
UNIFIED = torch.tensor([4.0, -3.0, 0.5, -1.0])


def test_emr_by_hand():
    tuned = [BASE + A, BASE + B]
    assert torch.equal(functional.emr(BASE, tuned, task=-1), BASE + UNIFIED)
    # Of A: (4, -3, 0.5, 0), whose mean is 7.5 / 4 where that of A is 8.5 / 4.
    expected = torch.tensor([4.0, -3.0, 0.5, 0.0]) * (8.5 / 7.5)
    assert torch.allclose(functional.emr(BASE, tuned, task=0), BASE + expected, rtol=1e-6)
    # Of B: (0, 0, 0, -1), with a scale of 4.
    assert torch.equal(functional.emr(BASE, tuned, task=1), BASE + torch.tensor([0.0, 0.0, 0.0, -4.0]))
    with pytest.raises(ValueError, match="tensor: task is 2; expected -1 to 1, one of the models"):
        functional.emr(BASE, tuned, task=2)
    # No delta at all.
    assert torch.equal(functional.emr(BASE, [BASE, BASE], task=1), BASE)


def test_the_scale_is_one_for_all_tensors():
    base = {"x": torch.zeros(2), "y": torch.zeros(4)}
    one = {"x": torch.tensor([1.0, 3.0]), "y": torch.tensor([1.0, 0.0, 0.0, 0.0])}
    two = {"x": torch.tensor([2.0, -1.0]), "y": torch.tensor([3.0, 0.0, 0.0, 0.0])}
    merged = merge_state_dicts(base, [one, two], method="emr", task=0)
    # Unified: (2, 3) and (3, 0, 0, 0), all of which task 0 keeps. Means 2 and 0.25 over 2.5 and 0.75.
    scale = (2 + 0.25) / (2.5 + 0.75)
    assert torch.allclose(merged["x"], scale * torch.tensor([2.0, 3.0]))
    assert torch.allclose(merged["y"], scale * torch.tensor([3.0, 0.0, 0.0, 0.0]))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emr")
    size = {"hidden": 32, "inner": 80, "vocab": 96, "layers": 1}
    states = {"base": make_tensors(0, **size)}
    states |= {name: make_tensors(seed, base=states["base"]) for seed, name in enumerate(("code", "math"), 1)}
    for name, state in states.items():
        save_model(folder / name, state)
    return folder, states


@pytest.mark.parametrize("task", ["code", "math"])
def test_an_artifact_gives_the_bits_of_the_method(models, task, tmp_path):
    folder, states = models
    seen = []
    experts = emr.save(
        folder / "base", {name: folder / name for name in ("code", "math")}, tmp_path / "emr",
        progress=lambda *step: seen.append(step),
    )  # fmt: skip
    assert experts.tasks == ("code", "math") and set(experts.names) == set(states["base"])
    assert seen[-1][0] == seen[-1][1] > 0 and emr.load(tmp_path / "emr") == experts
    index = experts.tasks.index(task)
    expected = merge_state_dicts(states["base"], [states["code"], states["math"]], method="emr", task=index)
    restored = experts.state_dict(states["base"], task)
    assert all(torch.equal(restored[name], tensor) for name, tensor in expected.items())
    # Closer to the expert than the base is, by far.
    name = "model.layers.0.mlp.up_proj.weight"
    away = [(state[name].float() - states[task][name].float()).norm() for state in (restored, states["base"])]
    assert away[0] < 0.7 * away[1]


def test_experts_are_swapped_in_place(models, tmp_path):
    folder, states = models
    experts = emr.save(folder / "base", [folder / "code", folder / "math"], tmp_path / "emr", dtype="bfloat16")
    state = {name: tensor.clone() for name, tensor in states["base"].items()} | {"steps": torch.tensor(7)}
    experts.apply_(state, "0")
    again = experts.state_dict(states["base"], "0")
    assert all(torch.equal(state[name], tensor) for name, tensor in again.items()) and state["steps"] == 7
    size = sum(path.stat().st_size for path in (tmp_path / "emr").iterdir())
    # Two bytes and two bits per parameter, where two models have four bytes.
    parameters = sum(tensor.numel() for tensor in states["base"].values())
    assert size < 2.5 * parameters + 10_000


def test_mistakes(models, tmp_path):
    folder, states = models
    with pytest.raises(ValueError, match="dtype is 'float8'; expected one of float32, bfloat16, float16"):
        emr.save(folder / "base", [folder / "code"], tmp_path / "a", dtype="float8")
    with pytest.raises(InvalidInput, match="there are no models"):
        emr.save(folder / "base", {}, tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"no emr\.json; expected a folder that fastmerge\.emr\.save wrote"):
        emr.load(folder)
    experts = emr.save(folder / "base", {"code": folder / "code"}, tmp_path / "a")
    with pytest.raises(OutputError, match="exists"):
        emr.save(folder / "base", {"code": folder / "code"}, tmp_path / "a")
    with pytest.raises(KeyError, match=r"has no task 'maths'; it has code"):
        experts.state_dict(states["base"], "maths")
    with pytest.raises(ValueError, match=r"state lacks the tensor"):
        experts.state_dict({}, "code")
    wrong = states["base"] | {"model.norm.weight": torch.ones(3)}
    with pytest.raises(ValueError, match=r"model\.norm\.weight has shape \(3,\); the artifact has \(32,\)"):
        experts.state_dict(wrong, "code")
    tied = states["base"] | {"lm_head.weight": states["base"]["model.embed_tokens.weight"]}
    with pytest.raises(ValueError, match=r"are one tensor of the state; the artifact has two"):
        experts.apply_(tied, "code")
    facts = json.loads((tmp_path / "a" / "emr.json").read_text())
    for damaged, message in (
        (facts | {"format": "other"}, r"has the format 'other'; this version reads fastmerge-emr-1"),
        ([], r"has the format None; this version reads fastmerge-emr-1"),
        ({"format": facts["format"], "base": "base"}, r"lacks scales, tasks; save the artifact again"),
    ):
        (tmp_path / "a" / "emr.json").write_text(json.dumps(damaged))
        with pytest.raises(CheckpointError, match=message):
            emr.load(tmp_path / "a")


def test_what_is_not_finite_is_refused(models, tmp_path):
    folder, states = models
    bad = states["code"] | {"model.norm.weight": torch.full((32,), float("nan"), dtype=torch.bfloat16)}
    save_model(tmp_path / "bad", bad)
    with pytest.raises(FastmergeError, match=r"model\.norm\.weight: a delta holds NaN or infinity"):
        emr.save(folder / "base", [tmp_path / "bad"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_from_the_command_line(tmp_path, monkeypatch):
    """Saved and restored, with the bits that ``apply_`` gives."""
    from click.testing import CliRunner
    from safetensors.torch import load_file

    from fastmerge.cli import main

    monkeypatch.chdir(tmp_path)
    base = make_tensors(0, layers=1, hidden=16, inner=8, heads=4, vocab=8)
    save_model("base", base)
    for seed, name in enumerate("xy"):
        save_model(name, make_tensors(seed + 1, base))

    def run(*arguments):
        return CliRunner().invoke(main, ["emr", *arguments])

    assert run("save", "base", "one=x", "two=y", "--out", "kept").exit_code == 0
    assert run("restore", "kept", "two", "--out", "restored").exit_code == 0
    expected = emr.load("kept").state_dict(base, "two")
    found = load_file("restored/model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert (tmp_path / "restored" / "config.json").exists()
    told = run("restore", "kept", "two", "--out", "again", "--json").stdout
    assert json.loads(told) == {"checkpoint": "again", "task": "two"}
    failed = run("restore", "kept", "three", "--out", "other")
    assert failed.exit_code == 2 and "kept has no task 'three'; it has one, two" in failed.output
    assert not (tmp_path / "other").exists()
