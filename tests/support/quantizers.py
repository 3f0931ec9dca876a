"""Small quantizers: they store a weight in the layout of a format, without the care of the real ones for its values."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmerge.checkpoint.quantized._bits import E2M1


def float8_blocks(name: str, weight: Tensor, block: int = 128) -> dict[str, Tensor]:
    """DeepSeek's blocks, with float32 scales."""
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight.float(), (0, -columns % block, 0, -rows % block))
    blocks = padded.unflatten(0, (-1, block)).unflatten(-1, (-1, block))
    scales = blocks.abs().amax((1, 3)) / 448
    grown = scales.repeat_interleave(block, 0).repeat_interleave(block, 1)[:rows, :columns]
    return {name: (weight.float() / grown).to(torch.float8_e4m3fn), f"{name}_scale_inv": scales}


def nvfp4(name: str, weight: Tensor) -> dict[str, Tensor]:
    """compressed-tensors' NVFP4."""
    groups = weight.float().unflatten(-1, (-1, 16))
    peak = groups.abs().amax(-1)
    overall = (448 * 6 / peak.amax()).reshape(1)
    scales = (peak / 6 * overall).to(torch.float8_e4m3fn)
    values = groups / (scales.float() / overall).clamp(min=1e-8).unsqueeze(-1)
    codes = (values.unsqueeze(-1) - torch.tensor(E2M1)).abs().argmin(-1).to(torch.uint8).flatten(-2)
    return {
        f"{name}_packed": codes[..., ::2] | codes[..., 1::2] << 4,
        f"{name}_scale": scales,
        f"{name}_global_scale": overall,
    }


def gptq(name: str, weight: Tensor, group: int = 32) -> dict[str, Tensor]:
    """GPTQ in 4 bits, version 1, with an order of the groups."""
    module = name.removesuffix("weight")
    columns = weight.shape[1]
    order = torch.arange(columns).flip(0) // group
    sorted_ = weight.float()[:, order.argsort(stable=True)].unflatten(-1, (-1, group))
    scales = (sorted_.abs().amax(-1) / 7).clamp(min=1e-6).half()
    codes = (weight.float() / scales.float()[:, order]).round().clamp(-8, 7).int() + 8
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    words = (codes.T.unflatten(0, (-1, 8)) << shifts[None, :, None]).sum(1, dtype=torch.int32)
    zeros = torch.full((scales.shape[1], weight.shape[0] // 8), 0x77777777, dtype=torch.int32)
    parts = {"qweight": words, "qzeros": zeros, "scales": scales.T, "g_idx": order.int()}
    return {module + part: tensor.contiguous() for part, tensor in parts.items()}


def quantize_model(tensors: dict[str, Tensor], quantizer, only: str = "_proj.weight") -> dict[str, Tensor]:
    """Quantize the tensors whose names end with ``only``."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stored |= quantizer(name, tensor) if name.endswith(only) else {name: tensor}
    return stored
