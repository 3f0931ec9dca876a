"""Tiny models with vocabularies of their own, and recipes that merge them by token."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny_models import llama_shapes, save_model

# Tokens of the vocabulary, added tokens, and rows of the embedding (more, or fewer, than there are tokens).
MODELS = {
    "a": (("<unk>", "a", "b", "c", "d"), ("<s>",), 8),
    "b": (("<unk>", "c", "b", "a", "e", "f"), ("<s>", "<tool>"), 8),
    "c": (("<unk>", "a", "b", "g", "e"), ("<tool>", "<s>"), 7),
    "d": (("<unk>", "a", "b", "h"), ("<s>", "<gone>"), 5),
}
_TWO = "models: [{model: b, parameters: {weight: 0.5}}, {model: c, parameters: {weight: 0.25}}]\n"
_TASK = "merge_method: task_arithmetic\nbase_model: %s\ndtype: float32\n" + _TWO
_LINEAR = "merge_method: linear\ndtype: float32\nmodels: [{model: a, parameters: {weight: 0.25}}, " + _TWO[9:]
_TOKENS = """tokenizer:
  source: union
  pad_to_multiple_of: 8
  tokens:
    <renamed>: {source: {kind: model_token, model: b, token: f}}
    <by_id>: {source: {kind: model_token, model: c, token_id: 3}, force: true}
    <zero>: {source: {kind: zero}}
    e: {source: c}
    a: {source: b, force: true}
"""
RECIPES = {
    "union": _TASK % "a" + "tokenizer_source: union\n",
    "base": _TASK % "a" + "tokenizer_source: base\n",
    "model": _TASK % "a" + "tokenizer_source: b\n",
    "tokens": _TASK % "a" + _TOKENS,
    "stripped": _TASK % "d" + "tokenizer_source: base\n",
    "stripped_union": _TASK % "d" + "tokenizer: {}\n",
    "linear": _LINEAR + "tokenizer_source: union\n",
    "linear_tokens": _LINEAR + _TOKENS,
}


def tokenizer_json(tokens, added=()) -> str:
    """Return the text of a BPE tokenizer whose tokens are single letters; added tokens are special."""
    behaviour = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": len(tokens) + i, "content": token, **behaviour} for i, token in enumerate(added)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)}, "merges": [],
        },
    }  # fmt: skip
    return json.dumps(data)


def exact_tensors(salt: int, rows: int, dtype=torch.float32, tied=False) -> dict[str, torch.Tensor]:
    """Return tensors of a tiny Llama whose values are multiples of 1/64, so that short sums of them are exact."""
    shapes = llama_shapes(layers=1, hidden=8, inner=8, heads=2, kv_heads=1, vocab=rows, tied=tied)
    return {
        name: ((torch.arange(math.prod(shape)) * 37 + 11 * salt + 5 * i) % 97 - 48).div(64).view(shape).to(dtype)
        for i, (name, shape) in enumerate(shapes.items())
    }  # fmt: skip


def save_word_model(folder: Path, tokens, added=(), rows=0, salt=0, dtype=torch.float32, tied=False, **config) -> Path:
    """Write a model with a tokenizer; as many rows as tokens unless ``rows`` says otherwise."""
    tensors = exact_tensors(salt, rows or len(tokens) + len(added), dtype, tied)
    save_model(folder, tensors, heads=2, kv_heads=1, architectures=["LlamaForCausalLM"], **config)
    (folder / "tokenizer.json").write_text(tokenizer_json(tokens, added))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return folder


def save_word_models(folder: Path) -> None:
    """Write ``MODELS``."""
    for salt, (name, (tokens, added, rows)) in enumerate(MODELS.items()):
        ids = {token: i for i, token in enumerate((*tokens, *added))}
        save_word_model(folder / name, tokens, added, rows, salt, bos_token_id=ids["<s>"], eos_token_id=ids["<s>"])


def vocabulary_of(folder: Path) -> dict[str, int]:
    """Return the ids of a ``tokenizer.json`` by token."""
    data = json.loads((folder / "tokenizer.json").read_text())
    return data["model"]["vocab"] | {entry["content"]: entry["id"] for entry in data["added_tokens"]}


def rows_of(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Return the rows of embedding and head by token; those of padding by ``""``, which must be equal."""
    ids, found = vocabulary_of(folder), {}
    tensors = {k: t for file in folder.glob("*.safetensors") for k, t in load_file(file).items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensor = tensors[name]
        padding = tensor[max(ids.values()) + 1 :]
        assert (padding == padding[:1]).all()
        found[name] = {token: tensor[i].tolist() for token, i in ids.items()}
        found[name] |= {"": padding[0].tolist()} if len(padding) else {}
    return found
