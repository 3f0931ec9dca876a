"""Tensors that 16-bit models keep in float32: rounded with a note, or kept by name."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import make_tensors, save_model

from fastmerge.errors import InvalidInput

LINEAR = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"
DECAY, BIAS = "model.layers.1.linear_attn.A_log", "model.layers.0.mlp.gate.e_score_correction_bias"


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Models of bfloat16 with two tensors of float32."""
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        save_model(name, make_tensors() | {DECAY: torch.ones(4), BIAS: torch.ones(4)})


def dtypes(plan):
    outputs = {output.name: output.dtype.torch for output in plan.outputs}
    others = {dtype for name, dtype in outputs.items() if name not in (DECAY, BIAS)}
    return outputs[DECAY], outputs[BIAS], others


@pytest.mark.parametrize("key", ["dtype", "out_dtype"])
@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_rounded_with_a_note(models, plan_of, key, name):
    plan = plan_of(f"{LINEAR}{key}: {name}\n")
    dtype = getattr(torch, name)
    assert dtypes(plan) == (dtype, dtype, {dtype})
    (note,) = plan.notes
    assert f"2 tensors that are float32 in models of 16 bits are rounded to {name}: " in note
    assert DECAY in note and BIAS in note and "keep_float32: [" in note and "A_log" in note


@pytest.mark.parametrize(
    ("kept", "expected", "notes"),
    [
        ("[A_log]", (torch.float32, torch.bfloat16), ["1 tensors that are float32"]),
        ("[A_log, e_score]", (torch.float32, torch.float32), []),
        ("true", (torch.float32, torch.float32), []),
        ("['*']", (torch.float32, torch.float32), []),
        ("[A_log, e_score, typing_error]", (torch.float32, torch.float32), ["'typing_error' is in no tensor's name"]),
        ("[mlp.up_proj]", (torch.bfloat16, torch.bfloat16), ["2 tensors that are float32"]),
    ],
)
def test_kept_by_name(models, plan_of, kept, expected, notes):
    plan = plan_of(f"{LINEAR}dtype: bfloat16\nkeep_float32: {kept}\n")
    assert dtypes(plan) == (*expected, {torch.bfloat16})
    assert len(plan.notes) == len(notes)
    for text, note in zip(notes, plan.notes, strict=True):
        assert text in note
    assert json.loads(plan.files["config.json"].text)["torch_dtype"] == "bfloat16"


def test_without_dtype_nothing_is_rounded(models, plan_of):
    assert dtypes(plan_of(LINEAR)) == (torch.float32, torch.float32, {torch.bfloat16})
    assert plan_of(LINEAR).notes == ()
    (note,) = plan_of(LINEAR + "keep_float32: [A_log]\n").notes
    assert "keep_float32: has no effect without a dtype of 16 bits" in note


def test_a_model_of_float32_is_meant_to_be_rounded(tmp_path, monkeypatch, plan_of):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        save_model(name, make_tensors(dtype=torch.float32))
    assert plan_of(LINEAR + "dtype: bfloat16\n").notes == ()


def test_what_keep_float32_takes(models, plan_of):
    with pytest.raises(InvalidInput, match="keep_float32"):
        plan_of(LINEAR + "dtype: bfloat16\nkeep_float32: {a: b}\n")
