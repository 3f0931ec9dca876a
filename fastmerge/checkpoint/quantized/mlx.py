"""MLX: affine groups of 2 to 8 bits, and its MXFP4, MXFP8 and NVFP4.

    affine:  value = code * scale + bias,   product and sum each rounded to the scales' dtype

Codes are packed without gaps into uint32, low bits first. The other modes have one-byte scales and give bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...dtypes import bfloat16, uint32
from ...errors import CheckpointError
from ..types import Coded, Part
from ._bits import as_bytes, fp4_values, powers_of_two, unpack
from ._stored import Found, Stored, coded, is_count
from .scaled import value_dtype

if TYPE_CHECKING:
    from torch import Tensor

BITS = (2, 3, 4, 5, 6, 8)
# Group size and bits of a mode.
MODES = {"mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}


@dataclass(frozen=True)
class Affine:
    """Decoder of codes [n, words], scales [n, groups] and biases [n, groups]."""

    bits: int
    group: int

    def decode(self, out: Tensor, parts: Sequence[Tensor], first: int) -> None:
        codes, scales, biases = parts
        # What the library computes in: out has the scales' dtype.
        values = unpack(as_bytes(codes), self.bits, out.shape[1]).to(out.dtype).view(len(out), -1, self.group)
        values.mul_(scales.unsqueeze(-1)).add_(biases.unsqueeze(-1))
        out.copy_(values.view(out.shape))


@dataclass(frozen=True)
class Floats:
    """Decoder of codes [n, words] of small floats with scales [n, groups] of one byte."""

    mode: str

    def decode(self, out: Tensor, parts: Sequence[Tensor], first: int) -> None:
        import torch

        codes, scales = parts
        group, bits = MODES[self.mode]
        packed = as_bytes(codes)
        if bits == 8:
            values = packed.view(torch.float8_e4m3fn).float()
        else:
            values = torch.empty(out.shape, dtype=torch.float32, device=out.device)
            fp4_values(packed, values)
        factors = scales.view(torch.float8_e4m3fn).float() if self.mode == "nvfp4" else powers_of_two(scales)
        values.view(len(out), -1, group).mul_(factors.unsqueeze(-1))
        out.copy_(values)


def find(stored: Stored, name: str) -> Found | None:
    """Return the tensor whose codes are stored as ``name``, or None where that is no such tensor."""
    codes = stored.tensors[name]
    if codes.dtype != uint32 or not name.endswith("weight"):
        return None
    stem = name.removesuffix("weight")
    scales, biases = stored.get(f"{stem}scales"), stored.get(f"{stem}biases")
    if scales is None or len(codes.shape) < 2:
        return None
    settings = _settings(stored, stem.rstrip("."))
    mode = str(settings.get("mode") or "affine")
    if mode == "affine":
        group, bits = settings.get("group_size"), settings.get("bits")
    elif mode in MODES:
        group, bits = MODES[mode]
    else:
        raise CheckpointError(f"{stored.folder}: MLX's mode {mode} is not offered, only affine, {', '.join(MODES)}")
    if not is_count(group) or not is_count(bits) or bits not in BITS:
        raise stored.wrong(name, f"is quantized by MLX, but its config says group_size {group!r} and bits {bits!r}")
    columns, extra = divmod(codes.shape[-1] * 32, bits)
    if extra or scales.shape != (*codes.shape[:-1], columns // group) or columns % group:
        what = f"has shape {list(scales.shape)}; {list(codes.shape)} words of {bits} bits in groups of {group} need "
        raise stored.wrong(f"{stem}scales", f"{what}{[*codes.shape[:-1], columns // group]}")
    shape = (*codes.shape[:-1], columns)
    if mode != "affine":
        scheme = Coded(f"mlx {mode}", (Part(codes), Part(scales)), Floats(mode))
        return Found(name, coded(bfloat16, shape, scheme), (name, f"{stem}scales"))
    biases = stored.need(f"{stem}biases", name)
    if (biases.shape, biases.dtype) != (scales.shape, scales.dtype):
        raise stored.wrong(f"{stem}biases", f"is {biases.dtype} {list(biases.shape)}, unlike its scales")
    scheme = Coded(f"mlx {bits} bits", (Part(codes), Part(scales), Part(biases)), Affine(bits, group))
    dtype = value_dtype(scales.dtype)
    return Found(name, coded(dtype, shape, scheme), (name, f"{stem}scales", f"{stem}biases"))


def _settings(stored: Stored, module: str) -> Mapping[str, Any]:
    """Return the settings of a module: its own where the config has them, else those of the model."""
    for section in stored.settings:
        if isinstance(section.get(module), dict):
            return section[module]
    return stored.settings[0] if stored.settings else {}
