"""The demo trains, merges and shows that merging works; its decoder is the Llama of transformers."""

from __future__ import annotations

import json

import pytest
import torch
from commands import call, call_json

from fastmerge import demo
from fastmerge.demo.model import Decoder, Size, save
from fastmerge.demo.tasks import VOCAB


@pytest.mark.slow
def test_merged_models_beat_the_base_and_every_fine_tune(tmp_path):
    told = call("demo", "--out", tmp_path / "demo", "--tour", "--json")
    assert told.exit_code == 0, told.stderr
    rows = {row["name"]: row for row in json.loads(told.stdout)}
    single = max(rows[name]["average"] for name in ("base", "red", "green", "blue"))
    assert all(max(rows[name]["accuracies"]) > 0.9 for name in ("red", "green", "blue"))
    assert single < 0.75
    assert rows["ties"]["average"] > single + 0.1
    assert rows["task_arithmetic"]["average"] > single + 0.1
    assert call("merge", tmp_path / "demo" / "ties.yml", tmp_path / "again").exit_code == 0
    again, first = (folder / "model.safetensors" for folder in (tmp_path / "again", tmp_path / "demo" / "ties"))
    assert again.read_bytes() == first.read_bytes()
    for line in (
        "of 21 tensors finished", "of them taken over from an interrupted run",
        "its bytes are those of the merge that was not interrupted", "every bit as recomputed",
        "v_proj.weight: 1 byte differs", "without boosting", "analysis/report.html",
    ):  # fmt: skip
        assert line in told.stderr
    shown = demo.example(tmp_path / "demo", 0)
    assert shown.answers["ties"] == shown.meaning != shown.answers["base"]
    for name, answer in shown.answers.items():
        assert _generated(tmp_path / "demo" / name, f"{shown.sentence} =") == f"{shown.sentence} = {answer}"


def _generated(folder, prompt):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokens = tokenizer(prompt, return_tensors="pt")
    return tokenizer.decode(model.generate(**tokens, max_new_tokens=4, do_sample=False, pad_token_id=0)[0])


def test_the_demo_runs_again_in_its_folder(tmp_path, monkeypatch):
    def untrained(words, seed):
        torch.manual_seed(seed)
        return Decoder(Size(VOCAB)).bfloat16().float()

    monkeypatch.setattr(demo, "RECIPES", {"ties": demo.RECIPES["ties"]})
    monkeypatch.setattr(demo, "train_base", untrained)
    monkeypatch.setattr(demo, "fine_tune", lambda base, words, i, seed: untrained(words, seed))
    rows = call_json("demo", "--out", tmp_path / "demo")
    for made in ("base/tokenizer.json", "ties/tokenizer.json", "accuracies.svg"):
        assert (tmp_path / "demo" / made).is_file()
    (tmp_path / "demo").rename(tmp_path / "moved")
    assert call("check", tmp_path / "moved" / "ties.yml").exit_code == 0
    (tmp_path / "moved").rename(tmp_path / "demo")
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


def test_the_demo_refuses_to_start_where_its_recipes_would_mean_something_else(tmp_path, monkeypatch):
    (tmp_path / "red").mkdir()
    monkeypatch.chdir(tmp_path)
    result = call("demo", "--out", "demo")
    assert result.exit_code == 2 and "has the name of a model of the demo; start the demo elsewhere" in result.stderr
    assert not (tmp_path / "demo").exists()


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
