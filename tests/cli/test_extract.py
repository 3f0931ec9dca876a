"""fastmerge extract through the command line."""

from __future__ import annotations

import json
import shutil

from commands import call, call_json
from safetensors.torch import load_file


def test_extract_reports_every_matrix_and_names_the_rest(models, tmp_path):
    result = call("extract", models / "base", models / "one", "--out", tmp_path / "adapter", "--rank", 5)
    assert result.exit_code == 0, result.output
    assert "model.layers.1.self_attn.v_proj" in result.stdout and "64 x 160" in result.stdout
    assert "14; their energy kept" in result.stdout and "7 that differ" in result.stdout
    assert "not in the adapter although different: model.embed_tokens.weight: it is an embedding" in result.stderr
    assert "it is no matrix" in result.stderr and "(--matrices all takes it)" in result.stderr
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(factors) == 28
    assert factors["base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"].shape == (5, 160)


def test_extract_as_json(models, tmp_path):
    values = call_json(
        "extract", models / "base", models / "one", "--out", tmp_path / "adapter", "--energy", 0.5, "--save-others"
    )
    assert len(values["matrices"]) == 14 and len(values["others"]) == 7
    assert all(m["energy"] >= 0.5 for m in values["matrices"]) and 0 < values["error"] < 1
    assert sum(other["saved"] for other in values["others"]) == 7
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"


def test_extract_errors_are_one_message(models, tmp_path):
    result = call("extract", models / "base", models / "base", "--out", tmp_path / "adapter", "--json")
    assert result.exit_code == 2
    assert "differ in no matrix" in json.loads(result.stdout)["error"]
    assert call("extract", models / "base", models / "one", "--out", tmp_path / "a", "--energy", 0).exit_code == 2


def test_notes_on_the_models_are_shown(models, tmp_path):
    shutil.copytree(models / "one", tmp_path / "one")
    (tmp_path / "one" / "pytorch_model.bin").touch()
    result = call("extract", models / "base", tmp_path / "one", "--out", tmp_path / "out", "--rank", 2)
    assert result.exit_code == 0, result.output
    assert "is read, and not pytorch_model.bin, which is there as well" in result.stderr
