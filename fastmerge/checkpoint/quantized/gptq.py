"""GPTQ: codes packed along the input features, groups of zero points and scales along them, ``g_idx`` for their order.

    weight[o, i] = (code[i, o] - zero[g_idx[i], o]) * scale[g_idx[i], o]

rounded to the scales' dtype. Version 1 of the format stores zero points less one, modulo 2**bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...dtypes import int32
from ...errors import CheckpointError
from ..types import Coded, TensorEntry
from ._bits import as_bytes, check_groups, unpack
from ._stored import INDEXES, Found, Stored, coded, whole
from .scaled import value_dtype

if TYPE_CHECKING:
    from torch import Tensor

BITS = (2, 3, 4, 8)
_TRANSPOSED_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")


@dataclass(frozen=True)
class Gptq:
    """Decoder of qweight [words, out], qzeros [groups, words], scales [groups, out] and g_idx [in].

    Without ``ordered`` the groups are ``group`` input features each, in their order.
    """

    bits: int
    offset: int
    group: int
    ordered: bool

    def decode(self, out: Tensor, parts: Sequence[Tensor], first: int) -> None:
        import torch

        qweight, qzeros, scales, *order = parts
        rows, columns = out.shape
        last = first + rows
        words = qweight[:, first:last].T.contiguous()
        values = unpack(as_bytes(words), self.bits, columns).float()
        # Thirty-two output features begin at a whole word.
        begin = first // 32 * 32
        zeros = unpack(
            as_bytes(qzeros[:, begin // 32 * self.bits : -(-last * self.bits // 32)]), self.bits, last - begin
        )
        zero = ((zeros[:, first - begin :].int() + self.offset) & ((1 << self.bits) - 1)).float().T
        scale = scales[:, first:last].float().T
        group = order[0].long() if self.ordered else torch.arange(columns, device=out.device) // self.group
        check_groups(group, scale.shape[1])
        values.sub_(zero[:, group]).mul_(scale[:, group])
        out.copy_(values)


def find(stored: Stored, name: str) -> Found | None:
    """Return the tensor whose codes are stored as ``name``, or None where that is no such tensor."""
    if not name.endswith(".qweight"):
        return None
    stem = name.removesuffix("qweight")
    codes, scales = stored.tensors[name], stored.need(f"{stem}scales", name)
    zeros = stored.need(f"{stem}qzeros", name)
    if len(codes.shape) != 2 or len(scales.shape) != 2 or codes.shape[1] != scales.shape[1]:
        return None  # AWQ packs the other dimension
    for part, entry in ((name, codes), (f"{stem}qzeros", zeros)):
        if entry.dtype != int32:
            raise stored.wrong(part, f"is {entry.dtype}, expected int32")
    if stored.model_type in _TRANSPOSED_MODELS:
        raise CheckpointError(
            f"{stored.folder}: GPTQ of {stored.model_type}, whose layers are transposed, is not offered"
        )
    order = stored.get(f"{stem}g_idx")
    if order is not None and (len(order.shape) != 1 or order.dtype not in INDEXES):
        raise stored.wrong(f"{stem}g_idx", f"is {order.dtype} {list(order.shape)}, expected one integer per column")
    if 0 in (*codes.shape, *scales.shape):
        raise stored.wrong(name, f"is empty: {list(codes.shape)}, its scales {list(scales.shape)}")
    bits = _bits(stored, name, codes, order)
    outer, inner = codes.shape[1], order.shape[0] if order else codes.shape[0] * 32 // bits
    if zeros.shape != (scales.shape[0], -(-outer * bits // 32)):
        raise stored.wrong(f"{stem}qzeros", f"has shape {list(zeros.shape)}, its scales {list(scales.shape)}")
    if order is None and inner % scales.shape[0]:
        raise stored.wrong(f"{stem}scales", f"has {scales.shape[0]} groups of {inner} input features")
    parts = [whole(codes), whole(zeros), whole(scales), *([whole(order)] if order else [])]
    decoder = Gptq(bits, _offset(stored), -(-inner // scales.shape[0]), order is not None)
    used = tuple(f"{stem}{ending}" for ending in ("qweight", "qzeros", "scales", *(["g_idx"] if order else [])))
    scheme = Coded(f"gptq {bits} bits", tuple(parts), decoder)
    return Found(f"{stem}weight", coded(value_dtype(scales.dtype), (outer, inner), scheme), used)


def _bits(stored: Stored, name: str, codes: TensorEntry, order: TensorEntry | None) -> int:
    stated = stored.setting("bits", "w_bit")
    if order is None:
        fitting: Sequence[int] = [bits for bits in BITS if bits == stated]
    else:
        fitting = [bits for bits in BITS if -(-order.shape[0] * bits // 32) == codes.shape[0]]
        fitting = [bits for bits in fitting if bits == stated] or fitting
    if len(fitting) != 1:
        raise stored.wrong(name, f"has shape {list(codes.shape)}, which is no packing of {stated or BITS} bits")
    return fitting[0]


def _offset(stored: Stored) -> int:
    """Return what is added to stored zero points: 1 in version 1."""
    kind = str(stored.setting("checkpoint_format", "format") or "gptq").lower()
    if kind in ("gptq", "auto_round:auto_gptq"):
        return 1
    if kind == "gptq_v2":
        return 0
    raise CheckpointError(f"{stored.folder}: GPTQ in the layout of {kind} is not offered, only gptq and gptq_v2")
