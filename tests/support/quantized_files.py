"""Quantized checkpoints from ``tests/data/quantized``, and plain decoding of their tensors."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from checkpoint_files import read_entry
from safetensors import safe_open
from safetensors.torch import save_file

from fastmerge.checkpoint import TensorEntry
from fastmerge.checkpoint.types import matrix_shape

DATA = Path(__file__).resolve().parents[1] / "data" / "quantized"
NAMES = sorted(path.stem for path in DATA.glob("*.safetensors"))


def load_case(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict]:
    """Return the stored tensors of a case, the values that its library decodes, and the config."""
    stored, expected = {}, {}
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        for key in file.keys():  # noqa: SIM118
            kind, _, own = key.partition(":")
            (expected if kind == "expected" and own else stored)[own or key] = file.get_tensor(key)
    return stored, expected, config


def write_case(folder: Path, stored: dict[str, torch.Tensor], config: dict) -> Path:
    """Write a checkpoint folder of stored tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def decode(entry: TensorEntry, first: int = 0, last: int | None = None) -> torch.Tensor:
    """Return the rows first .. last - 1 of a tensor, decoded where it is quantized; [n, columns]."""
    rows, columns = matrix_shape(entry.shape)
    last = rows if last is None else last
    if entry.coded is None:
        return read_entry(entry).view(rows, columns)[first:last]
    parts = []
    for part in entry.coded.parts:
        values = read_entry(part.entry)
        parts.append(values.reshape(rows, -1)[first:last] if part.by_row else values)
    out = torch.full((last - first, columns), float("nan"), dtype=entry.dtype.torch)
    entry.coded.decode(out, parts, first)
    return out
