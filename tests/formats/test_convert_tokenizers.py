"""Tokenizers in GGUF outputs, as the ``gguf`` package reads them back."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

gguf = pytest.importorskip("gguf")

from convertible_models import write_model  # noqa: E402
from gguf_files import read  # noqa: E402

from fastmerge.cli import main  # noqa: E402
from fastmerge.conversion import convert  # noqa: E402
from fastmerge.errors import CheckpointError  # noqa: E402

# As the files of Llama 3 and Qwen2 have them.
SPLITS = {
    "llama": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def bytes_tokenizer(pattern, vocab=90):
    split = {"type": "Split", "pattern": {"Regex": SPLITS.get(pattern, pattern)}, "behavior": "Isolated"}
    return {
        "model": {"type": "BPE", "vocab": {f"t{i}": i for i in range(vocab)}, "merges": [["t", "1"]]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel"}]},
        "decoder": {"type": "ByteLevel"},
        "added_tokens": [{"id": vocab, "content": "<s>", "special": True}, {"id": vocab + 1, "content": "<x>"}],
    }


def write_tokenizer(folder, tokenizer):
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "chat_template": "{{ messages }}", "add_bos_token": True})
    )


@pytest.mark.parametrize(("pattern", "name"), [("llama", "llama-bpe"), ("qwen", "qwen2")])
def test_tokenizer_of_bytes(tmp_path, pattern, name):
    write_model(tmp_path / "model")
    write_tokenizer(tmp_path / "model", bytes_tokenizer(pattern))
    result = CliRunner().invoke(main, ["convert", str(tmp_path / "model"), str(tmp_path / "m.gguf"), "--quiet"])
    assert result.exit_code == 0, result.output
    _, fields = read(tmp_path / "m.gguf")
    own = {key.removeprefix("tokenizer."): value for key, value in fields.items() if key.startswith("tokenizer.")}
    assert (own["ggml.model"], own["ggml.pre"], own["ggml.merges"]) == ("gpt2", name, ["t 1"])
    assert own["ggml.tokens"] == [f"t{i}" for i in range(90)] + ["<s>", "<x>"] + [f"[PAD{i}]" for i in range(92, 96)]
    assert own["ggml.token_type"] == [1] * 90 + [3, 4] + [5] * 4
    assert (own["ggml.bos_token_id"], own["chat_template"], own["ggml.add_bos_token"]) == (90, "{{ messages }}", True)


def test_tokenizers_that_cannot_be_said(tmp_path):
    model, out = tmp_path / "model", tmp_path / "m.gguf"
    write_model(model)
    with pytest.raises(CheckpointError, match=r"holds no tokenizer that can be said in GGUF.*--no-tokenizer"):
        convert(model, out)
    write_tokenizer(model, bytes_tokenizer("x+"))
    with pytest.raises(CheckpointError, match=r"not recognized here \(name llama.cpp's with --pre-tokenizer"):
        convert(model, out)
    write_tokenizer(model, bytes_tokenizer("llama", vocab=95))
    with pytest.raises(CheckpointError, match="has the id 96, the embedding 96 rows"):
        convert(model, out)
    write_tokenizer(model, bytes_tokenizer("x+"))
    assert convert(model, out, pre_tokenizer="mine").tokenizer == "gpt2"
    assert read(out)[1]["tokenizer.ggml.pre"] == "mine"


def test_sentencepiece(tmp_path):
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    write_model(tmp_path / "model", "gemma")
    (tmp_path / "text").write_text(
        "".join(f"{chr(97 + i % 26) * 3} cat {chr(97 + i % 7)}og sat on {i}\n" for i in range(300))
    )
    trainer.train(input=str(tmp_path / "text"), model_prefix=str(tmp_path / "model" / "tokenizer"), vocab_size=40,
                  minloglevel=2)  # fmt: skip
    (tmp_path / "model" / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {"1": {"content": "<s>", "special": True}, "41": {"content": "<y>"}}})
    )
    assert convert(tmp_path / "model", tmp_path / "m.gguf").tokenizer == "llama"
    _, fields = read(tmp_path / "m.gguf")
    assert fields["tokenizer.ggml.tokens"][:3] == ["<unk>", "<s>", "</s>"]
    assert fields["tokenizer.ggml.token_type"][:3] == [2, 3, 3]
    assert fields["tokenizer.ggml.tokens"][40:43] == ["[PAD40]", "<y>", "[PAD42]"]
    assert fields["tokenizer.ggml.token_type"][40:43] == [5, 4, 5]
    assert fields["tokenizer.ggml.add_space_prefix"] is False
    assert len(fields["tokenizer.ggml.scores"]) == 96
