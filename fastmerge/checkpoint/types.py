"""What is known of a checkpoint from its headers: files, and where each tensor lies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..dtypes import DType
from .joined import Joined

if TYPE_CHECKING:
    from torch import Tensor


class TensorEntry(NamedTuple):
    """Where a tensor lies: ``nbytes`` bytes of the file ``path`` from ``offset``, contiguous, row-major.

    A quantized tensor has the shape and dtype of its decoded values; the range is then that of its codes, and ``coded``
    says how the values follow.
    """

    path: str
    offset: int
    nbytes: int
    dtype: DType
    shape: tuple[int, ...]
    coded: Coded | None = None

    @property
    def quantized(self) -> bool:
        """True where the values were rounded to codes."""
        return self.coded is not None and not self.coded.moved


class Part(NamedTuple):
    """One stored tensor of a quantized one, and whether row i of the values needs only row i of it."""

    entry: TensorEntry
    by_row: bool = True


class Decoder(Protocol):
    """Turns stored tensors into values. Frozen: its ``repr`` is part of what identifies a merge."""

    def decode(self, out: Tensor, parts: Sequence[Tensor], first: int) -> None:
        """Write the rows ``first ..`` of the values into ``out`` [n, columns].

        ``parts`` are the stored tensors: those ``by_row`` as [n, ...] of these rows, the others whole.
        """


# Elements that are decoded at once: what decoders allocate stays in the cache, whatever the tensor's size.
DECODED_AT_ONCE = 1 << 17

# Bytes per element that a decoder allocates, at most.
DECODING_BYTES = 40


@dataclass(frozen=True)
class Coded:
    """How the values of a quantized tensor follow from stored tensors.

    Attributes:
        format:  what people call it, e.g. ``nvfp4``.
        parts:   the stored tensors, codes first.
        decoder: the arithmetic.
        step:    rows that are decoded together where possible, as layouts across rows want it.
        moved:   the stored tensor holds the values themselves, in another order or with a constant added.
        stacked: along the first dimension, entry i of the values needs only entry i of the parts.
    """

    format: str
    parts: tuple[Part, ...]
    decoder: Decoder
    step: int = 1
    moved: bool = False
    stacked: bool = False

    def entry(self, index: int) -> Coded:
        """Return how entry ``index`` of the first dimension follows, for one that is ``stacked``."""
        return replace(self, parts=tuple(part._replace(entry=_entry(part.entry, index)) for part in self.parts))

    def decode(self, out: Tensor, parts: Sequence[Tensor], first: int) -> None:
        """Write the rows ``first ..`` of the values into ``out`` [n, columns], a few at a time (see ``Decoder``)."""
        rows, columns = out.shape
        step = max(1, DECODED_AT_ONCE // max(columns, 1) // self.step) * self.step
        start = 0
        while start < rows:
            # Steps end at multiples of ``step`` of the whole tensor.
            stop = min((first + start) // step * step + step - first, rows)
            cut = [t[start:stop] if part.by_row else t for part, t in zip(self.parts, parts, strict=True)]
            self.decoder.decode(out[start:stop], cut, first + start)
            start = stop


def _entry(stored: TensorEntry, index: int) -> TensorEntry:
    nbytes = stored.nbytes // stored.shape[0]
    return stored._replace(offset=stored.offset + index * nbytes, nbytes=nbytes, shape=(1, *stored.shape[1:]))


def in_order(tensors: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Return tensors in the order of file and offset."""
    return dict(sorted(tensors.items(), key=lambda item: (item[1].path, item[1].offset)))


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns of a tensor as decoders see it: all dimensions but the last are rows."""
    columns = shape[-1] if shape else 1
    return (math.prod(shape) // columns if columns else 0), columns


@dataclass(frozen=True)
class InputFile:
    """Identity of an input file, as the manifest and the journal record it.

    Attributes:
        metadata: what a safetensors header says beside its tensors (``__metadata__``); not part of the identity.
        joined:   tensors that lie in pieces of files; they have addresses behind the ``nbytes`` of this one.
    """

    path: str
    nbytes: int
    mtime_ns: int
    header_digest: str
    metadata: Mapping[str, str] = field(default_factory=dict, compare=False)
    joined: tuple[Joined, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class Checkpoint:
    """A folder of weights, read from headers alone.

    Attributes:
        folder:  absolute path.
        files:   the weight files, in the order of their names.
        tensors: every tensor by name, in the order of file and offset.
        config:  ``config.json``, or None where the folder has none.
        notes:   what its user should know, one sentence each.
        quantized: names of the formats in which ``tensors`` are coded, none where they are not (or not read so).
        left_out: stored tensors that are no part of the model's weights, with the reason.
        source:  what the checkpoint was opened by where that is a file; "" for a folder.
    """

    folder: str
    files: tuple[InputFile, ...]
    tensors: dict[str, TensorEntry]
    config: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    quantized: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    source: str = ""

    @property
    def place(self) -> str:
        """What opens this checkpoint again: its folder, or the file that it is."""
        return self.source or self.folder
