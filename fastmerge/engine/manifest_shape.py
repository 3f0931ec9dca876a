"""What is read of a manifest, as pydantic checks it: keys that older ones lack have defaults, further ones are free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..recipe.faults import said

__all__ = ["fault_of"]


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True)


class _File(_Shape):
    name: str
    bytes: int


class _InputFile(_File):
    path: str
    mtime_ns: int
    header: str


class _Input(_Shape):
    reference: str
    folder: str
    config_source: str = ""
    files: list[_InputFile]


class _Read(_Shape):
    model: str
    name: str


class _Manifest(_Shape):
    semantics: str
    given_semantics: str | None = None
    seed: int
    recipe: str
    plan: str
    truncated: bool = False
    steps: dict[str, dict[str, Any]] = {}
    inputs: list[_Input]
    read: list[_Read] = []
    state_key: str | None = None
    files: list[_File] = []
    tensors: dict[str, str]
    sources: dict[str, list[str]] = {}


def fault_of(manifest: Mapping[str, Any]) -> str:
    """Return the first thing that is wrong with a manifest; "" where nothing is."""
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        fault = error.errors()[0]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
        return f"{where} is missing" if fault["type"] == "missing" else f"{where} {said(fault)}"
    return ""
