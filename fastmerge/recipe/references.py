"""Words of a recipe that stand for things: model references, tokenizer sources and dtypes."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from .types import ModelRef, TokenSpec

DTYPES = ("bfloat16", "float16", "float32", "float64")


def parse_reference(value: Any) -> ModelRef:
    """Make a ModelRef of text or of ``{model: {path, revision}, lora: {path, revision}}``.

    A folder that exists wins over the punctuation: ``./a+b`` is one model if there is such a folder.
    Raises ValueError saying what a reference looks like.
    """
    if isinstance(value, ModelRef):
        return value
    if isinstance(value, str):
        return _from_text(value)
    if isinstance(value, dict):
        return _from_mapping(value)
    raise ValueError(f"{value!r} is not a model; expected the path of a folder or a hub id (text, in quotes if needed)")


def parse_tensor_source(value: Any) -> ModelRef | str | None:
    """Make a ModelRef, or return ``base`` (or None) as it is."""
    return value if value is None or value == "base" else parse_reference(value)


def parse_revision(value: Any) -> str:
    """Return a revision; a number is one, too, if YAML took its text for it."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"is {value!r}, expected a revision (text, in quotes if needed)")
    return str(value)


def parse_tokenizer(value: Any) -> ModelRef | str:
    """Return ``union`` or ``base`` as it is, and make a ModelRef of everything else."""
    if value is None or value in ("union", "base"):
        return value or "union"
    # An older spelling of mergekit.
    return parse_reference(value.removeprefix("model:") if isinstance(value, str) else value)


def parse_token(token: str, source: Any, force: bool) -> TokenSpec:
    """Make a TokenSpec of a model, ``{kind: zero}`` or ``{kind: model_token, model, token | token_id}``."""
    if not (isinstance(source, dict) and "kind" in source):
        return TokenSpec(token, None if source is None else parse_reference(source), None, force)
    kind, rest = source["kind"], {key: value for key, value in source.items() if key != "kind"}
    if kind == "zero" and not rest:
        return TokenSpec(token, "zero", None, force)
    named = [value for key in ("token", "token_id") if (value := rest.pop(key, None)) is not None]
    if kind == "model_token" and set(rest) == {"model"} and len(named) == 1 and isinstance(named[0], str | int):
        return TokenSpec(token, parse_reference(rest["model"]), named[0], force)
    forms = "a model, {kind: zero}, {kind: model_token, model, token} or {kind: model_token, model, token_id}"
    raise ValueError(f"{source!r} is no source of a token; expected {forms}")


def parse_dtype(value: str) -> str:
    """Return the name of an output dtype without the ``torch.`` before it; ValueError names the ones there are."""
    name = value.removeprefix("torch.")
    if name in DTYPES:
        return name
    choices = f"{value!r} is not a dtype for merged weights; expected {', '.join(DTYPES)}"
    raise ValueError(f"{choices}, or leave the key out to keep the dtypes of the inputs")


def _from_text(text: str) -> ModelRef:
    text = text.strip()
    if not text:
        raise ValueError("the name of the model is empty; give the path of a folder or a hub id")
    if _exists(text):
        return ModelRef(text)
    pluses = [index for index, letter in enumerate(text) if letter == "+"]
    if not pluses:
        return _with_revision(text)
    # The longest prefix that exists is the model; hub ids hold no plus sign.
    split = next((i for i in reversed(pluses) if _exists(_with_revision(text[:i]).path)), pluses[0])
    model, lora = text[:split], text[split + 1 :]
    if not model or not lora or ("+" in lora and not _exists(lora)):
        raise ValueError(f"{text!r} is not a model; expected model, model@revision or model+lora")
    return replace(_with_revision(model), lora=_with_revision(lora))


def _with_revision(text: str) -> ModelRef:
    path, at, revision = text.rpartition("@")
    if not at or _exists(text):
        return ModelRef(text)
    if not path or not revision or "@" in path:
        raise ValueError(f"{text!r} is not a model; expected model or model@revision")
    return ModelRef(path, revision)


def _from_mapping(value: dict[str, Any]) -> ModelRef:
    # override_architecture is mergekit's: here names and shapes of the tensors say everything.
    unknown = set(value) - {"model", "lora", "override_architecture"}
    if unknown or "model" not in value:
        raise ValueError(f"{value!r} is not a model; expected {{model: {{path, revision}}, lora: {{path, revision}}}}")
    lora = value.get("lora")
    return replace(_part(value["model"]), lora=None if lora is None else _part(lora))


def _part(value: Any) -> ModelRef:
    if isinstance(value, str) and value:
        return _with_revision(value)
    if isinstance(value, dict) and set(value) <= {"path", "revision"}:
        path, revision = value.get("path"), value.get("revision")
        if isinstance(path, str) and path and (revision is None or isinstance(revision, str)):
            return ModelRef(path, revision)
    raise ValueError(f"{value!r} is not a model; expected {{path: text, revision: text}}, in quotes if needed")


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))
