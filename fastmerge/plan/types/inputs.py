"""The tensors that a merge reads: where they lie in files, and what becomes of them while they are read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ...checkpoint import Coded, InputFile, TensorEntry
from ...dtypes import DType, float32


@dataclass(frozen=True)
class Adapter:
    """What an adapter does to an input while it streams; ``engine.folding`` has the arithmetic of each kind.

    Attributes:
        kind:       ``lora``, ``loha``, ...
        parts:      what it is stored in: for ``lora`` up [m, r] and down [r, n], LoRA's B and A.
        scale:      of what is added.
        transposed: the input is stored as [in, out]; the parts are those of its transpose.
        detail:     numbers that the kind needs besides.
    """

    kind: str
    parts: tuple[InputTensor, ...]
    scale: float = 1.0
    transposed: bool = False
    detail: tuple[float, ...] = ()


@dataclass(frozen=True)
class Run:
    """Consecutive rows of a gathered tensor.

    Attributes:
        start, count: the rows.
        terms: what they are the mean of, each a source and its first row; one term is a copy, none are zeros.
    """

    start: int
    count: int
    terms: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Gathered:
    """Rows of other tensors, put together while they are read: a vocabulary in the order of another tokenizer.

    Attributes:
        sources: the tensors whose rows are taken, with adapters and codes of their own.
        runs:    every row up to ``mean_from``, in order.
        mean_from: the rows from here on are the mean of those before.
        stored:  dtype that holds what the sources store, before adapters are added.
    """

    sources: tuple[InputTensor, ...]
    runs: tuple[Run, ...]
    mean_from: int
    stored: DType


@dataclass(frozen=True)
class Made:
    """Values that no file holds: bytes that planning made, or random numbers that are drawn while they are read.

    Attributes:
        kind:  "given": ``data``; "normal": from the standard normal distribution; "uniform": from (-bound, bound).
        name:  for the counters of the random numbers.
        seed:  as well.
        bound: of "uniform".
        data:  of "given", as stored.
    """

    kind: Literal["given", "normal", "uniform"]
    name: str
    seed: int = 0
    bound: float = 1.0
    data: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class InputTensor:
    """Where one input tensor lies: a range of bytes of a file, contiguous and in row-major order.

    Attributes:
        model:  index into ``Plan.models``.
        name:   name of the tensor in that model.
        path:   absolute path of the file.
        offset: first byte.
        nbytes: length in bytes.
        dtype:  how the bytes are read.
        shape:  of the tensor.
        coded:  how the values follow from stored tensors, for a quantized one: dtype and shape are then those of the
                values, and the range that of its codes.
        adapters: what is done to the values, in order; the result is kept in float32.
        rounded: dtype to which the values are rounded before they take part; None takes them as they are.
        gathered: what the rows are, for a tensor that no file holds: ``path`` is then a name for it, and not a file's.
        made:   what the values are, where none of them come from a file; ``path`` is a name then, too.
    """

    model: int
    name: str
    path: str
    offset: int
    nbytes: int
    dtype: DType
    shape: tuple[int, ...]
    coded: Coded | None = None
    adapters: tuple[Adapter, ...] = ()
    rounded: DType | None = None
    gathered: Gathered | None = None
    made: Made | None = None

    @property
    def plain(self) -> bool:
        """True where the bytes that are read from ``path`` are the values."""
        return self.coded is None and not self.adapters and self.rounded is None

    @property
    def as_stored(self) -> bool:
        """True where the values are a range of bytes of the file at ``path``."""
        return self.plain and self.gathered is None and self.made is None

    @property
    def summed_dtype(self) -> DType:
        """Dtype of the values before they are rounded: with an adapter, the sum is kept in float32."""
        return float32 if self.adapters else self.dtype

    @property
    def value_dtype(self) -> DType:
        """Dtype of the values that a merge sees."""
        return self.rounded or self.summed_dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def stored_dtype(self) -> DType:
        """Dtype of what is stored, before adapters are added."""
        return self.gathered.stored if self.gathered else self.dtype

    @property
    def quantized(self) -> bool:
        """True where the values were rounded to codes."""
        if self.gathered is not None:
            return any(source.quantized for source in self.gathered.sources)
        return self.coded is not None and not self.coded.moved

    @property
    def summed(self) -> tuple[InputTensor | TensorEntry, ...]:
        """What gets a checksum as an input: what is stored, and rows as they are put together."""
        return (self,) if self.gathered is not None else self.stored

    @property
    def stored(self) -> tuple[InputTensor | TensorEntry, ...]:
        """Every range of a file that is read for this tensor."""
        if self.gathered is not None:
            return tuple(part for source in self.gathered.sources for part in source.stored)
        own = (self,) if self.coded is None else tuple(part.entry for part in self.coded.parts)
        return (*own, *(leaf for adapter in self.adapters for leaf in adapter.parts))


@dataclass(frozen=True)
class InputModel:
    """One model of the recipe: the reference as written, its resolved folder, and the files that are read.

    ``config_source`` is the other folder that its config and tokenizer are from; None where it has its own.
    """

    reference: str
    folder: str
    files: tuple[InputFile, ...]
    config_source: str | None = None


@dataclass(frozen=True)
class ReadFile:
    """A small file that planning read: of which model ("" for none), its name there, its place, length and xxh3-64."""

    model: str
    name: str
    path: str
    nbytes: int
    xxh3: str


@dataclass(frozen=True)
class Dropped:
    """An input tensor that no output uses, and why."""

    model: int
    name: str
    reason: str
