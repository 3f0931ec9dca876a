r"""Extraction: read one matrix of both models, approximate their difference, write its two factors.

    delta = tuned - base ~ U diag(s) V^T,   lora_B = U diag(s)^1/2,   lora_A = diag(s)^1/2 V^T,   alpha = r

The delta is float32. The approximation of rank r is the best one up to the stop of ``top_singular`` (its distance from
the delta exceeds the least one by less than 1e-6 of it), before the factors are rounded to their dtype.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import kernels
from ..dtypes import DType, bfloat16, float16, float32
from ..engine.folders import appearing
from ..engine.reading import DeltaReader, reading_bytes
from ..errors import BudgetError, FastmergeError, InvalidInput, Problem
from ..kernels.spectral import top_singular
from ..plan.types import InputTensor
from ..progress import ProgressLike, of_bytes, shown
from ..results import Result
from ..sizes import DEFAULT_RAM, parse_size, show_size
from .adapter_config import write_config
from .factors_file import FactorsFile
from .selection import Other, Pair, Selection, Wanted, is_embedding, module_path, open_pair, savable, select

__all__ = ["DTYPES", "Extracted", "ExtractionReport", "extract"]

DTYPES = {kind.name: kind for kind in (float32, bfloat16, float16)}
"""Dtypes of the factors, by name."""

_log = logging.getLogger(__name__)

MATRICES = ("attn_mlp", "all")

PREFIX = "base_model.model."

# Rows of a delta whose error is formed at once.
ROWS = 256


@dataclass(frozen=True)
class Extracted:
    """One matrix in the adapter.

    Attributes:
        name:   of the base's tensor.
        shape:  of the tensor.
        rank:   of its factors.
        norm:   Frobenius norm of the delta.
        energy: share of its squared norm that the singular values kept hold.
        error:  ``||delta - lora_B lora_A||_F / ||delta||_F`` with the factors as written.
        method: how the triplets were found (``kernels.spectral.Info``).
    """

    name: str
    shape: tuple[int, ...]
    rank: int
    norm: float
    energy: float
    error: float
    method: str


@dataclass(frozen=True, repr=False)
class ExtractionReport(Result):
    """Attributes:
    folder:    of the adapter.
    matrices:  what it approximates.
    others:    tensors that differ and are not approximated.
    unchanged: number of tensors that are equal in both models.
    nbytes:    size of the adapter's weights.
    seconds:   wall time.
    notes:     what is to be known of the models, one sentence each.
    """

    folder: str
    matrices: tuple[Extracted, ...]
    others: tuple[Other, ...]
    unchanged: int
    nbytes: int
    seconds: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"adapter of {len(self.matrices)} matrices in {self.folder}: {100 * self.energy:.1f} % of the difference, "
            f"{show_size(self.nbytes)}"
        )

    def facts(self) -> list[tuple[str, str]]:
        low, *_, high = sorted(matrix.rank for matrix in (*self.matrices, *self.matrices))
        return [
            ("matrices", f"{len(self.matrices)}, of rank {low}" + (f" to {high}" if high > low else "")),
            ("energy", f"{100 * self.energy:.2f} % of the squared norm is kept"),
            ("error", f"{100 * self.error:.2f} % of the norm is missed"),
            ("others", f"{len(self.others)} tensors differ and are not approximated, {self.unchanged} are equal"),
            ("time", f"{self.seconds:.2f} s"),
        ]

    @property
    def energy(self) -> float:
        """Share of the squared norm of all matrices' deltas that is kept."""
        return sum(m.energy * m.norm**2 for m in self.matrices) / sum(m.norm**2 for m in self.matrices)

    @property
    def error(self) -> float:
        """Norm of all that the factors miss of these deltas, relative to theirs."""
        return math.sqrt(sum((m.error * m.norm) ** 2 for m in self.matrices) / sum(m.norm**2 for m in self.matrices))


def extract(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rank: int = 64,
    energy: float | None = None,
    matrices: str = "attn_mlp",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    embeddings: bool = False,
    dtype: str = "float32",
    save_others: bool = False,
    ram: int | str = DEFAULT_RAM,
    progress: ProgressLike = None,
) -> ExtractionReport:
    """Write a PEFT LoRA adapter into the folder ``out`` that turns ``base`` into ``tuned``, as well as a rank allows.

    Args:
        base, tuned: folders or hub ids, as recipes name models; ``tuned`` may be ``model+adapter``.
        out:         folder of the adapter; it appears when it is complete.
        rank:        largest rank of a matrix; a matrix with fewer rows or columns gets as many.
        energy:      share of a delta's squared norm that is enough, in (0, 1]: a matrix gets the least rank that holds
                     it, up to ``rank``. None: all get ``rank``.
        matrices:    ``attn_mlp``: the projections in numbered layers; ``all``: every linear layer.
        include:     regular expressions: only modules in whose name one is found; ``matrices`` does not count then.
        exclude:     regular expressions: no modules in whose name one is found.
        embeddings:  approximate input embeddings, too, as PEFT's ``lora_embedding_A`` and ``lora_embedding_B``.
        dtype:       of the factors: float32, bfloat16 or float16.
        save_others: store tensors that differ and are no such matrix whole, as PEFT's ``modules_to_save``.
        ram:         memory budget beyond the interpreter and its packages.
        progress:    None draws a bar in notebooks, True everywhere, False none; or what is called with the input bytes
                     that were read, and all of them.
    Raises:
        InvalidInput:   the models cannot be opened, or do not differ in any matrix.
        FastmergeError: a file is corrupt, a delta is not finite, the budget is too small, ``out`` exists.
        ValueError:     an argument is out of range.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; expected at least 1")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy is {energy}; expected a share in (0, 1]")
    if matrices not in MATRICES:
        raise ValueError(f"matrices is {matrices!r}; expected one of {', '.join(MATRICES)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    for pattern in (*include, *exclude):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    started = time.perf_counter()
    first, second, notes = open_pair(os.fspath(base), os.fspath(tuned))
    models = first, second
    selection = select(*models, Wanted(matrices, tuple(include), tuple(exclude), embeddings))
    _check_budget(selection, rank, parse_size(ram))
    files = [file for model in models for file in model.files]
    total = sum(t.nbytes for pair in selection.pairs for t in pair)
    with (
        appearing(out) as folder,
        shown(progress, "extracting") as call,
        DeltaReader(files, of_bytes(call, total)) as reader,
    ):
        differing = [(pair, reason) for pair, reason in selection.others if not _equal(reader, pair)]
        others = [Other(pair[0].name, reason) for pair, reason in differing]
        saved: list[InputTensor] = []
        if save_others:
            others = savable(others, selection.matrices)
            saved = [pair[1] for (pair, _), other in zip(differing, others, strict=True) if other.saved]
        work = _Work(reader, DTYPES[dtype], rank, energy)
        path = folder / "adapter_model.safetensors"
        with FactorsFile(path, work.largest(selection.matrices, saved)) as file:
            # Larger elements first, so that each tensor starts at a multiple of its element's size.
            saved.sort(key=lambda tensor: -_stored(tensor).itemsize)
            small = sum(_stored(tensor).itemsize < work.dtype.itemsize for tensor in saved)
            for tensor in saved[: len(saved) - small]:
                work.copy(file, tensor)
            found = [item for pair in selection.matrices if (item := work.approximate(file, pair)) is not None]
            for tensor in saved[len(saved) - small :]:
                work.copy(file, tensor)
            file.finish()
        if not found:
            what = "differ in no matrix that an adapter can approximate"
            raise InvalidInput([Problem(f"{models[0]} and {models[1]}", what, "nothing was written")])
        write_config(
            folder / "adapter_config.json", models[0], {module_path(m.name): m.rank for m in found},
            [module_path(tensor.name) for tensor in saved],
        )  # fmt: skip
        nbytes = path.stat().st_size
    report = ExtractionReport(
        folder=os.path.abspath(out),
        matrices=tuple(found),
        others=(*others, *selection.unpaired),
        unchanged=len(selection.pairs) - len(found) - len(others),
        nbytes=nbytes,
        seconds=time.perf_counter() - started,
        notes=notes,
    )
    _log.info("%s", report)
    return report


def _check_budget(selection: Selection, rank: int, ram: int) -> None:
    if not selection.matrices:
        return
    largest = max((pair[0] for pair in selection.matrices), key=lambda tensor: matrix_bytes(tensor.shape, rank))
    needed = matrix_bytes(largest.shape, rank) + reading_bytes(selection.pairs)
    if needed > ram:
        raise BudgetError(
            f"the memory budget of {ram} bytes is too small: extraction needs at least {needed}, "
            f"to decompose {largest.name} (--ram)"
        )


def matrix_bytes(shape: tuple[int, ...], rank: int) -> int:
    """Return a bound of what the approximation of one matrix takes, its delta included.

    The search is not sure to converge, so room for the full decomposition, in float64, is part of it; that of a search
    (from measurements with glibc and MKL, rounded up) matters for the largest ranks that it takes, of long matrices.
    """
    n, m = sorted(shape)
    rank = min(rank, n // 8)
    search = 6 * (2 * rank + 5 * max(8, min(64, rank // 2))) * (m + n)
    return 4 * (m * n + max(search, 5 * m * n + 8 * n * n))


class _Work:
    """Approximates and writes one matrix after the other."""

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
        return kinds | {PREFIX + tensor.name: (tensor.shape, _stored(tensor)) for tensor in saved}

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
        file.begin(PREFIX + tensor.name, tensor.shape, _stored(tensor))
        for (part,) in self._reader.chunks([tensor]):
            file.write(part)


def _stored(tensor: InputTensor) -> DType:
    """Return the dtype in which the reader gives a tensor: with an adapter folded in, it is float32."""
    return tensor.value_dtype


def _keys(name: str) -> tuple[str, str]:
    """Return the names of the left and the right factor: lora_B and lora_A; of embeddings, transposed, A and B."""
    if is_embedding(name):
        return f"{PREFIX}{module_path(name)}.lora_embedding_A", f"{PREFIX}{module_path(name)}.lora_embedding_B"
    return f"{PREFIX}{module_path(name)}.lora_B.weight", f"{PREFIX}{module_path(name)}.lora_A.weight"


def _equal(reader: DeltaReader, pair: Pair) -> bool:
    equal = True
    for a, b in reader.chunks(pair):
        equal = equal and torch.equal(a, b)  # all is read, so that the progress adds up
    return equal


def _square(matrix: Tensor) -> float:
    """Return the squared Frobenius norm, exact products accumulated in float64."""
    partials = torch.empty(-(-matrix.numel() // kernels.GRID), 1, dtype=torch.float64)
    kernels.gram_partials(partials, [matrix])
    return kernels.total(partials)[0]


def _subtract(delta: Tensor, up: Tensor, down: Tensor) -> None:
    """Subtract the product of the factors from ``delta``."""
    for start in range(0, len(delta), ROWS):
        delta[start : start + ROWS].addmm_(up[start : start + ROWS], down, alpha=-1)
