"""AWQ in the layout ``gemm``: 4-bit codes packed along the output features, in an order of their own.

    weight[o, i] = (code[i, o] - zero[i // group, o]) * scale[i // group, o]

rounded to the scales' dtype (float16).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...dtypes import int32
from ...errors import CheckpointError
from ..types import Coded
from ._bits import as_bytes, unpack
from ._stored import Found, Stored, coded, whole
from .scaled import value_dtype

if TYPE_CHECKING:
    from torch import Tensor

# Of the eight codes of a word, from the low bits on, the place of each output feature.
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
PER_WORD = 8


@dataclass(frozen=True)
class Awq:
    """Decoder of qweight [in, words], qzeros [groups, words] and scales [groups, out]."""

    group: int

    def decode(self, out: Tensor, parts: Sequence[Tensor], first: int) -> None:
        qweight, qzeros, scales = parts
        last = first + len(out)
        values = _columns(qweight, first, last).T.float()
        zero = _columns(qzeros, first, last).T.float().contiguous()
        scale = scales[:, first:last].T.float()
        grouped = values.contiguous().view(len(out), -1, self.group)
        grouped.sub_(zero.unsqueeze(-1)).mul_(scale.unsqueeze(-1))
        out.copy_(grouped.view(out.shape))


def _columns(packed: Tensor, first: int, last: int) -> Tensor:
    """Return the codes of the output features first .. last - 1, uint8 [n, last - first]."""
    import torch

    begin, end = first // PER_WORD, -(-last // PER_WORD)
    count = (end - begin) * PER_WORD
    codes = unpack(as_bytes(packed[:, begin:end]), 4, count).view(len(packed), -1, PER_WORD)
    ordered = codes[:, :, torch.tensor(ORDER, device=codes.device)].flatten(1)
    return ordered[:, first - begin * PER_WORD : last - begin * PER_WORD]


def find(stored: Stored, name: str) -> Found | None:
    """Return the tensor whose codes are stored as ``name``, or None where that is no such tensor."""
    if not name.endswith(".qweight"):
        return None
    stem = name.removesuffix("qweight")
    codes, scales = stored.tensors[name], stored.need(f"{stem}scales", name)
    zeros = stored.need(f"{stem}qzeros", name)
    version = str(stored.setting("version") or "gemm").lower()
    if stored.method == "awq" and version != "gemm":
        raise CheckpointError(f"{stored.folder}: AWQ in the layout {version} is not offered, only gemm")
    if len(codes.shape) != 2 or len(scales.shape) != 2 or codes.shape[1] * PER_WORD != scales.shape[1]:
        raise stored.wrong(
            name, f"has shape {list(codes.shape)}, its scales {list(scales.shape)}: neither GPTQ nor AWQ"
        )
    inner, outer = codes.shape[0], scales.shape[1]
    if 0 in (*codes.shape, *scales.shape):
        raise stored.wrong(name, f"is empty: {list(codes.shape)}, its scales {list(scales.shape)}")
    if inner % scales.shape[0] or zeros.shape != (scales.shape[0], codes.shape[1]):
        raise stored.wrong(f"{stem}qzeros", f"has shape {list(zeros.shape)}, its scales {list(scales.shape)}")
    for part, entry in ((name, codes), (f"{stem}qzeros", zeros)):
        if entry.dtype != int32:
            raise stored.wrong(part, f"is {entry.dtype}, expected int32")
    scheme = Coded("awq 4 bits", (whole(codes), whole(zeros), whole(scales)), Awq(inner // scales.shape[0]))
    used = (name, f"{stem}qzeros", f"{stem}scales")
    return Found(f"{stem}weight", coded(value_dtype(scales.dtype), (outer, inner), scheme), used)
