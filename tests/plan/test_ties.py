"""Heads and second embeddings: copies of the embedding are one tensor with it, whatever the config says."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import make_tensors, save_model

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LINEAR = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"
DARE = """
merge_method: dare_ties
base_model: base
models: [{model: a}, {model: b}]
parameters: {weight: 0.5, density: 0.5}
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A function that saves ``base``, ``a`` and ``b``: which head each has, and what its config says of it."""
    monkeypatch.chdir(tmp_path)

    def save(**kinds):
        for i, (name, (head, says)) in enumerate(kinds.items()):
            tensors = make_tensors(seed=i, tied=True)
            if head == "copy":
                tensors[HEAD] = tensors[EMBEDDING].clone()
            elif head == "own":
                tensors[HEAD] = tensors[EMBEDDING] + 1
            elif head == "one row":
                tensors[HEAD] = tensors[EMBEDDING].clone()
                tensors[HEAD][-1, -1] += 1
            save_model(name, tensors, tie_word_embeddings=says)

    return save


def head_of(plan):
    """Return what the head of the output is merged from; None where it has none."""
    return next(([t.name for t in o.inputs.every] for o in plan.outputs if o.name == HEAD), None)


def ties(plan):
    return json.loads(plan.files["config.json"].text)["tie_word_embeddings"]


@pytest.mark.parametrize("kinds", [("copy", "copy"), ("copy", "none"), ("none", "copy"), ("none", "none")])
@pytest.mark.parametrize("says", [(True, True), (True, None), (None, None)])
def test_copies_are_left_out(models, plan_of, kinds, says):
    models(a=(kinds[0], says[0]), b=(kinds[1], says[1]))
    plan = plan_of(LINEAR)
    assert head_of(plan) is None and plan.notes == ()
    assert ties(plan) is (True if "copy" in kinds else says[0])
    reasons = {"abc"[d.model]: d.reason for d in plan.dropped}
    assert reasons == {
        name: "it is a copy of the embedding, to which every model ties it"
        for name, kind in zip("ab", kinds, strict=True)
        if kind == "copy"
    }


@pytest.mark.parametrize("kind", ["own", "one row"])
@pytest.mark.parametrize("other", ["copy", "none", "own"])
def test_a_head_that_differs_is_a_head(models, plan_of, kind, other):
    """transformers 5 does not tie a head that is not the embedding, whatever the config says."""
    models(a=(other, True), b=(kind, True))
    plan = plan_of(LINEAR)
    assert head_of(plan) == [HEAD if other != "none" else EMBEDDING, HEAD]
    assert ties(plan) is False
    notes = [note for note in plan.notes if "the config ties the head to the embedding, but lm_head.weight" in note]
    assert len(notes) == 1 + (other == "own") and "/b: " in notes[-1]
    assert not plan.dropped


def test_a_config_that_unties_equal_tensors(models, plan_of):
    models(a=("copy", False), b=("copy", False))
    plan = plan_of(LINEAR)
    assert head_of(plan) == [HEAD, HEAD] and ties(plan) is False and plan.notes == ()


def test_stacked_layers(models, plan_of):
    models(a=("copy", True), b=("copy", True))
    ranges = "".join(f"  - sources: [{{model: {name}, layer_range: [0, 2]}}]\n" for name in "ab")
    plan = plan_of(f"merge_method: passthrough\nslices:\n{ranges}")
    assert head_of(plan) is None and ties(plan) is True


def test_without_a_config_a_copy_is_merged_as_the_embedding(models, plan_of, tmp_path):
    models(base=("copy", True), a=("copy", True), b=("copy", True))
    for name in ("base", "a", "b"):
        (tmp_path / name / "config.json").unlink()
    outputs = {output.name: output for output in plan_of(DARE).outputs}
    assert outputs[HEAD].group.name == outputs[EMBEDDING].group.name == EMBEDDING
    assert [t.name for t in outputs[HEAD].inputs.every] == [HEAD] * 3


@pytest.mark.parametrize("copies", [True, False])
def test_second_embeddings(tmp_path, monkeypatch, plan_of, copies):
    """T5 and BART save one embedding under several names."""
    monkeypatch.chdir(tmp_path)
    names = ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "other.weight"]
    for i, folder in enumerate(("base", "a", "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}")
        embedding = torch.randn(50, 40, generator=torch.Generator().manual_seed(i))
        tensors = {name: embedding + (0 if copies or k == 0 else k) for k, name in enumerate(names[:3])}
        save_file(tensors | {"other.weight": torch.randn(50, 40)}, tmp_path / folder / "model.safetensors")
    outputs = {output.name: output.group.name for output in plan_of(DARE).outputs}
    assert len({outputs[name] for name in names[:3]}) == (1 if copies else 3)
    assert outputs["other.weight"] == "other.weight"


def test_heads_after_a_merge(models, plan_of, tmp_path):
    from safetensors.torch import load_file

    from fastmerge.engine import RunOptions, run

    models(base=("copy", False), a=("copy", None), b=("one row", False))
    run(plan_of(DARE), "out", RunOptions())
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert not torch.equal(found[HEAD], found[EMBEDDING])
    models(base=("none", True), a=("copy", True), b=("copy", True))
    run(plan_of(DARE), "out2", RunOptions())
    assert HEAD not in load_file(tmp_path / "out2" / "model.safetensors")
