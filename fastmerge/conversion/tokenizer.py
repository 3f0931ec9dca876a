"""The tokenizer of a folder as the metadata of a GGUF file, through the ``gguf`` package's helpers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.folder import read_json
from ..errors import CheckpointError

__all__ = ["Tokenizer", "tokenizer_of"]

# How a text is split before it is merged to tokens, and llama.cpp's name of that. Only these are told apart here.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {_WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe", _WORDS + r"\p{N}" + _REST: "qwen2"}

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # gguf.TokenType


@dataclass(frozen=True)
class Tokenizer:
    """Tokens by id, with what llama.cpp needs beside them.

    Attributes:
        model:  ``gpt2`` for pairs of bytes that are merged, ``llama`` for SentencePiece.
        pre:    how texts are split first.
        tokens, scores, types: of every id up to the rows of the embedding.
        special: the package's ``SpecialVocab``: merges, ids of special tokens, chat template.
        space_prefix: a space is put before a text; of SentencePiece only.
    """

    model: str
    pre: str
    tokens: list[bytes]
    scores: list[float]
    types: list[int]
    special: Any
    space_prefix: bool = True

    def add_to(self, writer: Any) -> None:
        """Write it into a ``gguf.GGUFWriter``."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.model == "llama":
            writer.add_token_scores(self.scores)
            if not self.space_prefix:
                writer.add_add_space_prefix(False)
        writer.add_token_types(self.types)
        self.special.add_to_gguf(writer, quiet=True)


def tokenizer_of(folder: str, rows: int, pre: str | None, architecture: str) -> Tokenizer:
    """Return the tokenizer of a folder.

    Args:
        rows: of the embedding; ids behind the last token are padding.
        pre:  llama.cpp's name of how texts are split; None recognizes those of Llama 3 and Qwen.
    Raises:
        CheckpointError: there is none, or of a kind that cannot be said in GGUF.
    """
    try:
        return _read(folder, rows, pre, architecture)
    except CheckpointError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}: its tokenizer cannot be read: {error!r:.300} (--no-tokenizer writes the weights alone)"
        ) from error


def _read(folder: str, rows: int, pre: str | None, architecture: str) -> Tokenizer:
    data = read_json(os.path.join(folder, "tokenizer.json"), missing_ok=True)
    pieces = os.path.join(folder, "tokenizer.model")
    if data is not None and _is_of_bytes(data):
        model, pre = "gpt2", pre or _split_of(folder, data)
        tokens = {int(i): (token.encode(), 0.0, _NORMAL) for token, i in data["model"]["vocab"].items()}
        tokens |= _added(data.get("added_tokens") or ())
    elif _is_sentencepiece(pieces):
        model, pre = "llama", pre or "default"
        tokens = dict(enumerate(_sentencepiece(folder)))
        decoder = (read_json(os.path.join(folder, "tokenizer_config.json"), missing_ok=True) or {}).get(
            "added_tokens_decoder"
        ) or {}
        added = _added({**token, "id": i} for i, token in decoder.items())
        # What SentencePiece has itself keeps its kind: bytes, unknown, control.
        tokens |= {i: token for i, token in added.items() if i not in tokens or tokens[i][0] != token[0]}
    else:
        raise CheckpointError(
            f"{folder}: holds no tokenizer that can be said in GGUF: tokenizer.json with pairs of bytes (Llama 3, "
            "Qwen) or tokenizer.model of SentencePiece (put it there, or take --no-tokenizer for the weights alone)"
        )
    if max(tokens, default=0) >= rows:
        raise CheckpointError(
            f"{folder}: the tokenizer has the id {max(tokens)}, the embedding {rows} rows "
            "(take the model's own tokenizer)"
        )
    listed = [tokens.get(i, (f"[PAD{i}]".encode(), -1000.0, _UNUSED)) for i in range(rows)]
    texts, scores, types = (list(column) for column in zip(*listed, strict=True))
    special = _special(folder, rows, merges=model == "gpt2")
    return Tokenizer(model, pre, texts, scores, types, special, space_prefix="gemma" not in architecture)


def _is_of_bytes(data: Mapping[str, Any]) -> bool:
    model, decoder = data.get("model") or {}, data.get("decoder") or {}
    kinds = {decoder.get("type"), *(inner.get("type") for inner in decoder.get("decoders") or ())}
    return model.get("type") == "BPE" and not model.get("byte_fallback") and "ByteLevel" in kinds


def _split_of(folder: str, data: Mapping[str, Any]) -> str:
    before = data.get("pre_tokenizer") or {}
    for step in before.get("pretokenizers") or (before,):
        if name := _SPLITS.get((step.get("pattern") or {}).get("Regex", "")):
            return name
    raise CheckpointError(
        f"{folder}: its tokenizer splits texts in a way that is not recognized here (name llama.cpp's with "
        "--pre-tokenizer, or take --no-tokenizer for the weights alone)"
    )


def _added(tokens: Any) -> dict[int, tuple[bytes, float, int]]:
    return {
        int(token["id"]): (token["content"].encode(), -1000.0, _CONTROL if token.get("special") else _USER_DEFINED)
        for token in tokens
    }


def _is_sentencepiece(path: str) -> bool:
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(1) == b"\n"


def _sentencepiece(folder: str) -> Iterator[tuple[bytes, float, int]]:
    from gguf.vocab import SentencePieceVocab

    for text, score, kind in SentencePieceVocab(Path(folder)).all_tokens():
        yield text, score, int(kind)


def _special(folder: str, rows: int, merges: bool) -> Any:
    from gguf.vocab import SpecialVocab

    return SpecialVocab(folder, load_merges=merges, n_vocab=rows)
