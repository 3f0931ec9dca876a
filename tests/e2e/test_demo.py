"""The demo trains, merges and shows that merging works; its decoder is the Llama of transformers."""

from __future__ import annotations

import pytest
import torch
from commands import call, call_json

from fastmerge import demo
from fastmerge.demo.model import Decoder, Size, save
from fastmerge.demo.tasks import VOCAB


@pytest.mark.slow
def test_merged_models_beat_the_base_and_every_fine_tune(tmp_path):
    rows = {row["name"]: row for row in call_json("demo", "--out", tmp_path / "demo")}
    single = max(rows[name]["average"] for name in ("base", "red", "green", "blue"))
    assert all(max(rows[name]["accuracies"]) > 0.9 for name in ("red", "green", "blue"))
    assert single < 0.75
    assert rows["ties"]["average"] > single + 0.1
    assert rows["task_arithmetic"]["average"] > single + 0.1
    assert call("merge", tmp_path / "demo" / "ties.yml", tmp_path / "again").exit_code == 0
    again, first = (folder / "model.safetensors" for folder in (tmp_path / "again", tmp_path / "demo" / "ties"))
    assert again.read_bytes() == first.read_bytes()


def test_the_demo_runs_again_in_its_folder(tmp_path, monkeypatch):
    def untrained(words, seed):
        torch.manual_seed(seed)
        return Decoder(Size(VOCAB)).bfloat16().float()

    monkeypatch.setattr(demo, "RECIPES", {"ties": demo.RECIPES["ties"]})
    monkeypatch.setattr(demo, "train_base", untrained)
    monkeypatch.setattr(demo, "fine_tune", lambda base, words, i, seed: untrained(words, seed))
    rows = call_json("demo", "--out", tmp_path / "demo")
    recipe, merged, mine = (tmp_path / "demo" / name for name in ("ties.yml", "ties/model.safetensors", "mine.yml"))
    before = merged.read_bytes()
    mine.write_text("mine")
    assert call_json("demo", "--out", tmp_path / "demo") == rows
    assert merged.read_bytes() == before and mine.read_text() == "mine"
    assert call("check", recipe).exit_code == 0
    recipe.write_text(recipe.read_text() + "# changed\n")
    result = call("demo", "--out", tmp_path / "demo")
    assert result.exit_code == 2
    assert "ties.yml was changed since the demo wrote it; rename it" in result.stderr


def test_the_demo_refuses_a_folder_in_use(tmp_path):
    (tmp_path / "file").touch()
    result = call("demo", "--out", tmp_path)
    assert result.exit_code == 2
    assert "is not empty; choose another folder with --out" in result.stderr


@pytest.mark.slow
def test_the_decoder_computes_what_transformers_computes(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = Decoder(Size(vocab=50)).to(torch.bfloat16).float()
    save(model, tmp_path)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.randint(50, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), peer(tokens).logits, rtol=1e-4, atol=1e-5)
