"""Vocabularies of every kind of tokenizer file: the tokens that the library of the kind gives to an id."""

from __future__ import annotations

import base64
import json

import pytest

from fastmerge.checkpoint.vocabulary import vocabularies
from fastmerge.errors import CheckpointError


def tokens(folder):
    return vocabularies(str(folder))[0].tokens()


@pytest.mark.parametrize("kind", ["BPE", "Unigram", "WordPiece", "WordLevel"])
def test_tokenizer_json(tmp_path, kind):
    tokenizers = pytest.importorskip("tokenizers")
    models = {
        "BPE": lambda: tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]),
        "Unigram": lambda: tokenizers.models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], 0),
        "WordPiece": lambda: tokenizers.models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"),
        "WordLevel": lambda: tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"),
    }
    tokenizer = tokenizers.Tokenizer(models[kind]())
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert tokens(tmp_path) == {i: tokenizer.id_to_token(i) for i in range(4)}


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "source.spm", "tokenizer.model.v3"])
def test_sentencepiece(tmp_path, name):
    sentencepiece = pytest.importorskip("sentencepiece")
    text = tmp_path / "text"
    text.write_text("so many words in so few lines\n" * 9)
    with open(tmp_path / name, "wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_writer=out, vocab_size=20, character_coverage=1.0, minloglevel=3,
            user_defined_symbols=["<extra>"],
        )  # fmt: skip
    text.unlink()
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / name))
    assert tokens(tmp_path) == {i: processor.id_to_piece(i) for i in range(len(processor))}


@pytest.mark.parametrize("name", ["qwen.tiktoken", "tokenizer.model"])
def test_tiktoken(tmp_path, name):
    pieces = [bytes([i]) for i in range(256)] + [b"ab", "é".encode()]
    lines = [base64.b64encode(piece) + b" %d\n" % i for i, piece in enumerate(pieces)]
    (tmp_path / name).write_bytes(b"".join(lines))
    assert tokens(tmp_path) == {i: piece.decode("latin-1") for i, piece in enumerate(pieces)}


def test_tekken(tmp_path):
    data = {
        "config": {"default_vocab_size": 5, "default_num_special_tokens": 2},
        "special_tokens": [{"rank": 0, "token_str": "<unk>"}, {"rank": 1, "token_str": "<s>"}],
        "vocab": [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode()} for i in range(9)],
    }
    (tmp_path / "tekken.json").write_text(json.dumps(data))
    assert tokens(tmp_path) == {0: "<unk>", 1: "<s>", 2: "\0", 3: "\1", 4: "\2"}


def test_tokens_that_other_files_add(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<tool>": 2}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"3": {"content": "<end>"}}}))
    assert tokens(tmp_path) == {0: "a", 1: "b", 2: "<tool>", 3: "<end>"}
    (tmp_path / "vocab.json").unlink()
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    assert tokens(tmp_path) == {0: "[PAD]", 1: "[UNK]", 2: "<tool>", 3: "<end>"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b'{"model": []}', "is not a tokenizer file"),
        ("tokenizer.json", b"[]", "is not a JSON object"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": Infinity}}}', "is not a tokenizer file"),
        (
            "tokenizer.json",
            b'{"model": {"vocab": [["a", 0]]}, "added_tokens": [{"id": "x"}]}',
            "is not a tokenizer file",
        ),
        ("tekken.json", b"{}", "is not a tokenizer file"),
        ("tokenizer.model", b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        ("tokenizer.model", b"\n\x7fabc", "ends within a field"),
        ("tokenizer.model", b"\n" + b"\xff" * 20, "64 bits"),
        ("x.tiktoken", b"no base64! x\n", "is not a tokenizer file"),
        ("vocab.txt", b"\xff\xfe", "is not a tokenizer file"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        tokens(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        '{"model": {"vocab": {"a": -1}}}', '{"model": {"vocab": {"a": 99999999999}}}',
        '{"model": {"vocab": {"a": 1e30}}}',
        '{"model": {"vocab": [[5, 0.5]]}}', '{"model": {"vocab": {}}, "added_tokens": [{"id": 0, "content": null}]}',
    ],
)  # fmt: skip
def test_what_is_no_token_or_no_id(text, tmp_path):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"is not a tokenizer file: .*has the id"):
        vocabularies(str(tmp_path))[0].tokens()
