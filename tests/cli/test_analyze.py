"""fastmerge analyze through the command line."""

from __future__ import annotations

import json
import os
import shutil

from commands import call, call_json


def test_analyze_writes_a_report_and_says_where(models, tmp_path):
    names = [models / name for name in ("one", "two", "three")]
    result = call("analyze", *names, "--base", models / "base", "--out", tmp_path / "report", "--choose", 2)
    assert result.exit_code == 0, result.output
    assert "norm of delta" in result.stdout and "least in common: " in result.stdout
    assert f"report: {tmp_path / 'report'}/report.html" in result.stdout
    # The recipe is named by its place: another one may be called recipe.yml here.
    recipe = os.path.relpath(tmp_path / "report" / "recipe.yml")
    assert "Try first: " in result.stdout and recipe in result.stdout.replace("\n", "")
    assert "<h1>What the models changed" in (tmp_path / "report" / "report.html").read_text()


def test_analyze_as_json(models, tmp_path):
    values = call_json(
        "analyze", models / "one", models / "two", "--base", models / "base", "--out", tmp_path / "r", "--show", "0.mlp"
    )
    assert [model["label"] for model in values["summary"]["models"]] == ["one", "two"]
    assert "tensors.csv" in values["files"]
    shown = (tmp_path / "r" / "spectra.csv").read_text()
    assert all(f"layers.0.mlp.{part}_proj" in shown for part in ("gate", "up", "down")) and "attn" not in shown


def test_analyze_errors_are_one_message(models, tmp_path):
    result = call("analyze", models / "one", "--base", tmp_path / "none", "--out", tmp_path / "r", "--json")
    assert result.exit_code == 2 and "neither an existing folder" in json.loads(result.stdout)["error"]
    assert call("analyze", models / "one", "--out", tmp_path / "r").exit_code == 2


def test_notes_on_the_models_are_shown(models, tmp_path):
    shutil.copytree(models / "one", tmp_path / "one")
    (tmp_path / "one" / "pytorch_model.bin").touch()
    result = call("analyze", tmp_path / "one", "--base", models / "base", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "is read, and not pytorch_model.bin, which is there as well" in result.stderr
