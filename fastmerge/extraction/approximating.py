r"""The approximation of one difference, and its two factors in the file.

    delta = tuned - base ~ U diag(s) V^T,   lora_B = U diag(s)^1/2,   lora_A = diag(s)^1/2 V^T,   alpha = r

The delta is float32. The approximation of rank r is the best one up to the stop of ``top_singular`` (its distance from
the delta exceeds the least one by less than 1e-6 of it), before the factors are rounded to their dtype.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import kernels
from ..dtypes import DType
from ..engine.reading import DeltaReader
from ..errors import FastmergeError
from ..kernels.spectral import top_singular
from ..plan.types import InputTensor
from .factors_file import FactorsFile
from .report import Extracted
from .selection import Pair, is_embedding, module_path

PREFIX = "base_model.model."

# Rows of a delta whose error is formed at once.
ROWS = 256


def matrix_bytes(shape: tuple[int, ...], rank: int) -> int:
    """Return a bound of what the approximation of one matrix takes, its delta included.

    The search is not sure to converge, so room for the full decomposition, in float64, is part of it; that of a search
    (from measurements with glibc and MKL, rounded up) matters for the largest ranks that it takes, of long matrices.
    """
    n, m = sorted(shape)
    rank = min(rank, n // 8)
    search = 6 * (2 * rank + 5 * max(8, min(64, rank // 2))) * (m + n)
    return 4 * (m * n + max(search, 5 * m * n + 8 * n * n))


class Approximation:
    """Approximates and writes one matrix after the other.

    Attributes:
        dtype: of the factors.
    """

    def __init__(self, reader: DeltaReader, dtype: DType, rank: int, energy: float | None):
        self._reader, self.dtype, self._rank, self._energy = reader, dtype, rank, energy

    def largest(self, matrices: list[Pair], saved: list[InputTensor]) -> dict[str, tuple[tuple[int, ...], DType]]:
        """Return every tensor that may be written, with its largest shape."""
        kinds: dict[str, tuple[tuple[int, ...], DType]] = {}
        for tensor, _ in matrices:
            rows, columns = tensor.shape
            rank = min(self._rank, rows, columns)
            up, down = _keys(tensor.name)
            shapes = ((rank, rows), (columns, rank)) if is_embedding(tensor.name) else ((rows, rank), (rank, columns))
            kinds |= {up: (shapes[0], self.dtype), down: (shapes[1], self.dtype)}
        return kinds | {PREFIX + tensor.name: (tensor.shape, stored_dtype(tensor)) for tensor in saved}

    def approximate(self, file: FactorsFile, pair: Pair) -> Extracted | None:
        """Write the factors of one difference; None where there is no difference."""
        name = pair[0].name
        delta = self._reader.delta(*pair)
        square = _square(delta)
        if not math.isfinite(square):
            raise FastmergeError(f"{name}: the difference of the models holds NaN or infinity. Repair the model")
        if square == 0:
            return None
        u, s, vh, (info,) = top_singular(delta, min(self._rank, *delta.shape))
        squares = s.double().square().cumsum(0)
        if self._energy is not None:
            kept = min(int((squares < self._energy * square).sum()) + 1, len(s))
            u, s, vh, squares = u[:, :kept], s[:kept], vh[:kept], squares[:kept]
        root = s.sqrt()
        up, down = (u * root).to(self.dtype.torch), (root.unsqueeze(1) * vh).to(self.dtype.torch)
        for key, factor in zip(_keys(name), (up, down), strict=True):
            stored = factor.mT.contiguous() if is_embedding(name) else factor
            file.begin(key, tuple(stored.shape), self.dtype)
            file.write(stored)
        _subtract(delta, up.float(), down.float())
        missed = _square(delta)
        share = min(float(squares[-1]) / square, 1.0)
        return Extracted(name, pair[0].shape, len(s), math.sqrt(square), share, math.sqrt(missed / square), info.method)

    def copy(self, file: FactorsFile, tensor: InputTensor) -> None:
        """Write a tensor as the fine-tuned model has it."""
        file.begin(PREFIX + tensor.name, tensor.shape, stored_dtype(tensor))
        for (part,) in self._reader.chunks([tensor]):
            file.write(part)


def stored_dtype(tensor: InputTensor) -> DType:
    """Return the dtype in which the reader gives a tensor: with an adapter folded in, it is float32."""
    return tensor.value_dtype


def _keys(name: str) -> tuple[str, str]:
    """Return the names of the left and the right factor: lora_B and lora_A; of embeddings, transposed, A and B."""
    if is_embedding(name):
        return f"{PREFIX}{module_path(name)}.lora_embedding_A", f"{PREFIX}{module_path(name)}.lora_embedding_B"
    return f"{PREFIX}{module_path(name)}.lora_B.weight", f"{PREFIX}{module_path(name)}.lora_A.weight"


def _square(matrix: Tensor) -> float:
    """Return the squared Frobenius norm, exact products accumulated in float64."""
    partials = torch.empty(-(-matrix.numel() // kernels.GRID), 1, dtype=torch.float64)
    kernels.gram_partials(partials, [matrix])
    return kernels.total(partials)[0]


def _subtract(delta: Tensor, up: Tensor, down: Tensor) -> None:
    """Subtract the product of the factors from ``delta``."""
    for start in range(0, len(delta), ROWS):
        delta[start : start + ROWS].addmm_(up[start : start + ROWS], down, alpha=-1)
