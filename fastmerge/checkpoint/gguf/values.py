"""Decoder of GGUF tensors: the ``gguf`` package's values, in the rows of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...dtypes import bfloat16, float16, float32
from ...errors import CheckpointError
from .header import TYPES

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = {0: float32, 1: float16, 30: bfloat16}
"""Types whose bytes are values."""


@dataclass(frozen=True)
class GgufValues:
    """Decoder of rows of blocks.

    Attributes:
        kind:   GGML's type.
        heads:  heads whose rows are put back into transformers' order; 0 leaves rows where they are.
        offset: is added to the values, in float32.
    """

    kind: int
    heads: int = 0
    offset: float = 0.0

    def decode(self, out: Tensor, parts: Sequence[Tensor], first: int) -> None:
        import torch

        (codes,) = parts
        if self.heads:
            codes = codes[self._rows(first, len(out), codes)]
        if self.kind in FLOATS:
            values = codes.contiguous().view(FLOATS[self.kind].torch)
        else:
            values = torch.from_numpy(_quants().dequantize(codes.cpu().numpy(), _kind(self.kind))).to(out.device)
        out.copy_(values.float() + self.offset if self.offset else values)

    def _rows(self, first: int, count: int, codes: Tensor) -> Tensor:
        """Return where the rows lie in the file: there, both halves of a rotary pair are neighbours."""
        import torch

        size = len(codes) // self.heads
        row = torch.arange(first, first + count, device=codes.device)
        head, within = row // size, row % size
        return head * size + within % (size // 2) * 2 + within // (size // 2)


class GgufVector(GgufValues):
    """Decoder of a bias whose values are permuted: one row that is all of them."""

    def decode(self, out: Tensor, parts: Sequence[Tensor], first: int) -> None:
        import torch

        column = torch.empty(out.shape[1], 1, dtype=out.dtype, device=out.device)
        super().decode(column, parts, 0)
        out.copy_(column.T)


def require_package(path: str, kinds: set[int]) -> None:
    """Raise CheckpointError where the types of a file need a package that is not installed."""
    quantized = sorted(TYPES[kind][0] for kind in kinds if kind not in FLOATS)
    if quantized:
        try:
            supported = _quants()._type_traits
        except ImportError as error:
            raise CheckpointError(
                f"{path}: holds {', '.join(quantized)}, which the package gguf decodes (pip install 'fastmerge[gguf]')"
            ) from error
        missing = [TYPES[kind][0] for kind in kinds if kind not in FLOATS and _kind(kind) not in supported]
        if missing:
            raise CheckpointError(f"{path}: holds {', '.join(missing)}, which the package gguf does not decode")


def _quants():
    from gguf import quants

    return quants


def _kind(kind: int):
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType(kind)
