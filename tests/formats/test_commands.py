"""Commands that look at models see the decoded values of quantized ones, and say how these are stored."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from quantizers import float8_blocks, nvfp4, quantize_model
from safetensors.torch import save_file
from tiny_models import make_tensors, save_model

from fastmerge.analysis import analyze
from fastmerge.cli import main
from fastmerge.extraction import extract

SIZE = {"hidden": 64, "inner": 160, "layers": 1}
UP = "model.layers.0.mlp.up_proj.weight"


def call(*arguments):
    return CliRunner().invoke(main, [str(item) for item in arguments])


@pytest.fixture
def models(tmp_path):
    """A base, its quantized self (without a config that says so), and a fine-tune."""
    base = make_tensors(0, **SIZE)
    save_model(tmp_path / "base", base)
    save_model(tmp_path / "coded", base)
    save_file(quantize_model(base, float8_blocks), tmp_path / "coded" / "model.safetensors", metadata={"format": "pt"})
    save_model(tmp_path / "tuned", make_tensors(1, base=base))
    return tmp_path


def test_inspect_names_the_format(models):
    result = call("inspect", models / "coded", "--tensors")
    assert result.exit_code == 0 and f"{UP}" in result.output
    (row,) = [line for line in result.output.splitlines() if UP in line]
    assert " fp8 " in row and "_scale_inv" not in result.output
    found = json.loads(call("inspect", models / "coded", "--json").output)["tensors"][UP]
    assert (found["dtype"], found["shape"], found["format"]) == ("float32", [160, 64], "fp8")
    assert found["bytes"] == 160 * 64 + 4 * 2 * 1


def test_inspect_shows_what_is_not_read(models):
    (models / "coded" / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "vptq"}}))
    result = call("inspect", models / "coded", "--tensors")
    assert result.exit_code == 0 and "quantized by vptq" in result.output
    assert f"{UP}_scale_inv" in result.output


def test_diff_compares_values(models):
    compared = json.loads(call("diff", models / "base", models / "coded", "--json").output)
    found = {item["name"]: item for item in compared["tensors"]}
    assert found.keys() == make_tensors(0, **SIZE).keys()
    assert 0.999 < found[UP]["cosine"] < 1 and found["model.norm.weight"]["changed"] == 0


def test_extract_and_analyze_read_values(models):
    report = extract(models / "coded", models / "tuned", models / "adapter", rank=8)
    assert len(report.matrices) == 7 and report.unchanged == 0
    analyze([str(models / "base"), str(models / "tuned")], str(models / "coded"), models / "report")
    assert (models / "report" / "report.html").exists()


def test_output_loads_as_an_ordinary_model(models):
    transformers = pytest.importorskip("transformers")
    config = json.loads((models / "coded" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
    (models / "coded" / "config.json").write_text(json.dumps(config))
    stored = quantize_model(make_tensors(0, **SIZE), nvfp4)
    save_file(stored, models / "coded" / "model.safetensors", metadata={"format": "pt"})
    recipe = models / "recipe.yml"
    recipe.write_text(
        f"merge_method: linear\nmodels:\n- {{model: {models}/coded, parameters: {{weight: 1}}}}\n"
        f"- {{model: {models}/tuned, parameters: {{weight: 1}}}}\n"
    )
    result = call("merge", recipe, models / "out")
    assert result.exit_code == 0, result.output
    assert "nvfp4" in result.stderr
    model = transformers.AutoModelForCausalLM.from_pretrained(models / "out")
    assert model.dtype == torch.bfloat16 and not hasattr(model.config, "quantization_config")
