"""Token ids that mean other tokens: a note without a tokenizer key; with one they are merged by token."""

from __future__ import annotations

import base64
import json

import pytest

from fastmerge.errors import InvalidInput

LINEAR = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}, {model: c}]\n"


def tokenizer_json(tokens):
    return json.dumps({"model": {"vocab": {token: i for i, token in enumerate(tokens)}}, "added_tokens": []})


def piece(token):
    message = b"\n" + bytes([len(token)]) + token.encode()
    return b"\n" + bytes([len(message)]) + message


def tekken(tokens):
    listed = [{"rank": i, "token_bytes": base64.b64encode(token.encode()).decode()} for i, token in enumerate(tokens)]
    return json.dumps({"config": {"default_num_special_tokens": 0}, "vocab": listed})


KINDS = {
    "tokenizer.json": tokenizer_json,
    "vocab.json": lambda tokens: json.dumps({token: i for i, token in enumerate(tokens)}),
    "tokenizer.model": lambda tokens: b"".join(map(piece, tokens)),
    "tekken.json": tekken,
    "vocab.txt": "\n".join,
    "x.tiktoken": lambda tokens: "\n".join(
        f"{base64.b64encode(t.encode()).decode()} {i}" for i, t in enumerate(tokens)
    ),
}


def write(folder, kind, tokens):
    content = KINDS[kind](tokens)
    (folder / kind).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(family, plan_of, tmp_path, kind):
    write(tmp_path / "a", kind, ["x", "y", "z"])
    write(tmp_path / "b", kind, ["x", "y", "z"])
    write(tmp_path / "c", kind, ["x", "z", "y", "more"])
    swapped, more = plan_of(LINEAR).notes
    assert f"c/{kind}: 2 token ids mean other tokens than in a: 1 is 'z', there 'y'" in swapped
    assert more == "1 token ids of c mean nothing in a: 3 is 'more'"
    merged = plan_of(LINEAR + "tokenizer_source: a")
    assert merged.gathered and merged.notes == ("1 tokens of c are not in the vocabulary of a: 'more'",)


def test_files_that_say_the_same(family, plan_of, tmp_path):
    for name in "abc":
        write(tmp_path / name, "tokenizer.json", ["x", "y"])
    with open(tmp_path / "b" / "tokenizer.json", "a") as file:
        file.write("\n")
    assert plan_of(LINEAR).notes == ()


def test_added_tokens(family, plan_of, tmp_path):
    for name in "abc":
        write(tmp_path / name, "vocab.json", ["x", "y"])
    (tmp_path / "b" / "added_tokens.json").write_text('{"<tool>": 2}')
    assert plan_of(LINEAR).notes == ("1 token ids of b mean nothing in a: 2 is '<tool>'",)


def test_what_cannot_be_compared(family, plan_of, tmp_path):
    write(tmp_path / "a", "tokenizer.json", ["x", "y"])
    write(tmp_path / "b", "tekken.json", ["x", "y"])
    kinds, none = plan_of(LINEAR).notes
    assert kinds == (
        "tokenizer.json of a and tekken.json of b are of different kinds, so the vocabularies are not compared"
    )
    assert none == "c has no tokenizer, so its vocabulary cannot be compared with that of a"
    (tmp_path / "b" / "tokenizer.json").write_text("{}")
    assert "is not a tokenizer file" in plan_of(LINEAR).notes[0]
    with pytest.raises(InvalidInput, match="is not a tokenizer file"):
        plan_of(LINEAR + "tokenizer_source: a")
