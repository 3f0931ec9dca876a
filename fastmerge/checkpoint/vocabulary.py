"""Which token an id means, from the tokenizer files of every kind that checkpoints have."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from .folder import read_json
from .opening import open_small, read_text
from .placeholders import placeholder

Tokens = dict[int, str]


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer file of a checkpoint.

    Attributes:
        path:  of the file.
        kind:  what the file is; vocabularies of one kind spell tokens alike.
        read:  gives the tokens by id.
    """

    path: str
    kind: str
    read: Callable[[str], Tokens]

    def tokens(self) -> Tokens:
        """Return the token of every id, added tokens included.

        Raises:
            CheckpointError: the file is not what its name says.
        """
        try:
            found = self.read(self.path)
            found = found if self.kind == "tokenizer.json" else found | _added(os.path.dirname(self.path))
            odd = next((item for item in found.items() if not _is_token(*item)), None)
            if odd is not None:
                raise ValueError(f"token {odd[1]!r:.60} has the id {odd[0]!r:.60}")
            return found
        except CheckpointError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError, OSError) as error:
            what = placeholder(self.path) or f"is not a tokenizer file: {error!r}"
            raise CheckpointError(f"{self.path}: {what}") from error


def _is_token(i: Any, token: Any) -> bool:
    return isinstance(token, str) and 0 <= i < 1 << 31


def vocabularies(folder: str) -> list[Vocabulary]:
    """Return the files of a checkpoint that say which token an id means, the one that loaders prefer first."""
    names = sorted(os.listdir(folder))
    return [
        Vocabulary(os.path.join(folder, name), kind, read)
        for pattern, kind, read in _KINDS
        for name in fnmatch.filter(names, pattern)
    ]


def _tokenizer_json(path: str) -> Tokens:
    data = read_json(path) or {}
    vocabulary = data["model"]["vocab"]
    # A unigram vocabulary is a list of [token, score].
    listed = vocabulary.items() if isinstance(vocabulary, dict) else ((e[0], i) for i, e in enumerate(vocabulary))
    return {int(i): token for token, i in listed} | {int(t["id"]): t["content"] for t in data.get("added_tokens") or []}


def _vocab_json(path: str) -> Tokens:
    return {int(i): token for token, i in (read_json(path) or {}).items()}


def _vocab_txt(path: str) -> Tokens:
    # Not splitlines: some tokens are characters that it takes for ends of lines.
    return dict(enumerate(read_text(path).removesuffix("\n").split("\n")))


def _tekken(path: str) -> Tokens:
    data = read_json(path) or {}
    special = data.get("special_tokens") or []
    first = data["config"]["default_num_special_tokens"]
    tokens = {first + t["rank"]: base64.b64decode(t["token_bytes"]).decode("latin-1") for t in data["vocab"]}
    # More may be listed than are used.
    size = data["config"].get("default_vocab_size")
    return {i: t for i, t in tokens.items() if size is None or i < size} | {
        int(t["rank"]): t["token_str"] for t in special
    }


def _tiktoken(path: str) -> Tokens:
    with open_small(path) as file:
        pairs = [line.split() for line in file if line.strip()]
    try:
        return {int(rank): base64.b64decode(token, validate=True).decode("latin-1") for token, rank in pairs}
    except binascii.Error as error:
        raise ValueError(str(error)) from error


def _model(path: str) -> Tokens:
    """Read a ``.model``: SentencePiece's, or a list of base64 tokens (Llama 3)."""
    with open_small(path) as file:
        data = file.read()
    if data[:1] == b"\n":
        return dict(enumerate(_pieces(data)))
    return _tiktoken(path)


def _pieces(data: bytes) -> Iterator[str]:
    """Yield the pieces of a SentencePiece model: field 1 of the message, whose field 1 is the text."""
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            yield next((text.decode() for f, text in _fields(value) if f == 1 and isinstance(text, bytes)), "")


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield number and value of the fields of a protobuf message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    while at < len(data):
        key = varint()
        wire = key & 7
        if wire == 0:
            yield key >> 3, varint()
            continue
        length = {1: 8, 5: 4}.get(wire)
        if length is None:
            if wire != 2:
                raise ValueError(f"wire type {wire}")
            length = varint()
        if at + length > len(data):
            raise ValueError("the file ends within a field")
        yield key >> 3, data[at : at + length]
        at += length


def _added(folder: str) -> Tokens:
    """Return the tokens that files beside the vocabulary add to it."""
    plain: dict[str, Any] = read_json(os.path.join(folder, "added_tokens.json"), missing_ok=True) or {}
    config = read_json(os.path.join(folder, "tokenizer_config.json"), missing_ok=True) or {}
    decoder = config.get("added_tokens_decoder") or {}
    return {int(i): token for token, i in plain.items()} | {int(i): token["content"] for i, token in decoder.items()}


_KINDS: tuple[tuple[str, str, Callable[[str], Tokens]], ...] = (
    ("tokenizer.json", "tokenizer.json", _tokenizer_json),
    ("tekken.json", "tekken", _tekken),
    ("vocab.json", "vocab.json", _vocab_json),
    ("*.model", "model", _model),
    ("*.model.v*", "model", _model),
    ("*.spm", "model", _model),
    ("vocab.txt", "vocab.txt", _vocab_txt),
    ("*.tiktoken", "tiktoken", _tiktoken),
)
