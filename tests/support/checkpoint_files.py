"""Writers of checkpoint files that no library would write, and of adapters."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def write_raw(path, header, data: bytes = b"") -> Path:
    """Write a safetensors file with the given header (an object or text), right or wrong."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + data)
    return Path(path)


def write_adapter(folder, modules, rank=2, seed=0, prefix="base_model.model.", **config) -> dict[str, torch.Tensor]:
    """Write a PEFT LoRA adapter for ``modules`` (module name -> shape of its weight). Returns its tensors."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (rows, columns) in modules.items():
        r = config.get("rank_pattern", {}).get(module.rpartition(".")[2], rank)
        tensors[f"{prefix}{module}.lora_A.weight"] = torch.randn(r, columns, generator=generator)
        tensors[f"{prefix}{module}.lora_B.weight"] = torch.randn(rows, r, generator=generator)
    written = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(written))
    save_file(tensors, folder / "adapter_model.safetensors")
    return tensors


def read_entry(entry) -> torch.Tensor:
    """Return the tensor that lies where an entry or an input tensor says."""
    with open(entry.path, "rb") as file:
        file.seek(entry.offset)
        raw = bytearray(file.read(entry.nbytes))
    if not raw:
        return torch.empty(entry.shape, dtype=entry.dtype.torch)
    return torch.frombuffer(raw, dtype=torch.uint8).view(entry.dtype.torch).view(entry.shape)
