"""A plan: everything about a merge that is decided before tensor data moves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

from ..checkpoint import Coded, InputFile, TensorEntry
from ..dtypes import DType, float32
from ..methods import Group
from ..sizes import show_size
from ..steps.inputs import Inputs


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
class Entry:
    """A tensor as the header of an output file has it."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the output.

    Attributes:
        name:   in the output checkpoint.
        dtype:  as written.
        shape:  of the tensor.
        shard:  index into ``Plan.shards``.
        offset: first byte in the shard file (header included).
        nbytes: length in bytes.
        method: name of the merge method, or "copy": the bytes of the single input are taken as they are.
        inputs: with a base for methods that take one.
        group:  what the method is told; None for copies.
        through: dtype to which the result is rounded before it becomes ``dtype``; None rounds once.
        entries: of the file, where they are not the tensor itself: one that it is a part of, or several that it
                 consists of, one behind the other.
        skip:   bytes of the first entry that lie before it.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    shard: int
    offset: int
    nbytes: int
    method: str
    inputs: Inputs[InputTensor]
    group: Group | None = None
    through: DType | None = None
    entries: tuple[Entry, ...] = ()
    skip: int = 0

    @property
    def stored(self) -> tuple[Entry, ...]:
        """What the file calls it: mostly one entry of its name."""
        return self.entries or (Entry(self.name, self.dtype, self.shape),)


@dataclass(frozen=True)
class Shard:
    """One output file: its final name, its safetensors header (length prefix included) and its size in bytes."""

    filename: str
    header: bytes
    nbytes: int


@dataclass(frozen=True)
class InputModel:
    """One model of the recipe: the reference as written, its resolved folder, and the files that are read."""

    reference: str
    folder: str
    files: tuple[InputFile, ...]


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


@dataclass(frozen=True, repr=False)
class Plan:
    """The whole merge. ``outputs`` are ordered by (shard, offset).

    Attributes:
        recipe:   text of the recipe, verbatim.
        method:   merge method of the recipe.
        semantics, seed: as resolved.
        models:   every model that is read.
        outputs:  every tensor that is written.
        shards:   every safetensors file that is written.
        index:    text of ``model.safetensors.index.json``, or None for a single shard.
        dropped:  every input tensor that is not used.
        files:    small files of the output by name: their text (config.json, ...) or the path that is copied.
        notes:    what the user should know, one sentence each.
        steps:    the manifests of merges whose results are inputs of this one, by name.
        origins:  what the recipe says of every output, by name (``explain.Origin``); empty unless asked for.
        truncated: True where vocabularies of different sizes were cut to the smallest.
        digest:   hash of everything that decides the output's bytes.
        recipe_file: absolute path of the recipe; None for text.
        given_semantics: as the recipe or its caller has them; None where the method's default was taken.
        read:     every small file that planning read.
    """

    recipe: str
    method: str
    semantics: str
    seed: int
    models: tuple[InputModel, ...]
    outputs: tuple[OutputTensor, ...]
    shards: tuple[Shard, ...]
    index: str | None
    dropped: tuple[Dropped, ...]
    files: dict[str, TextFile | CopiedFile] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    steps: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, Any] = field(default_factory=dict)
    truncated: bool = False
    digest: str = ""
    recipe_file: str | None = None
    given_semantics: str | None = None
    read: tuple[ReadFile, ...] = ()

    def __repr__(self) -> str:
        return f"<Plan: {self}>"

    def __str__(self) -> str:
        return (
            f"{self.method} of {len(self.models)} models: {len(self.outputs)} tensors, "
            f"reads {show_size(self.bytes_read)}, writes {show_size(self.bytes_written)}"
        )

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{escape(model.reference)}</li>" for model in self.models)
        notes = "".join(f"<p>note: {escape(note)}</p>" for note in self.notes)
        return f"<p>{escape(str(self))}</p><ul>{items}</ul>{notes}"

    @property
    def gathered(self) -> dict[str, InputTensor]:
        """The inputs that no file holds, by the name that stands for their path."""
        every = (tensor for output in self.outputs for tensor in output.inputs.every)
        return {tensor.path: tensor for tensor in every if tensor.gathered is not None}

    @property
    def made(self) -> dict[str, InputTensor]:
        """The inputs whose values come from no file, by the name that stands for their path."""
        every = (tensor for output in self.outputs for tensor in output.inputs.every)
        return {tensor.path: tensor for tensor in every if tensor.made is not None}

    @property
    def bytes_read(self) -> int:
        """Bytes of the inputs, each range counted once."""
        ranges = {
            (part.path, part.offset, part.nbytes)
            for output in self.outputs
            for tensor in output.inputs.every
            if tensor.made is None
            for part in tensor.stored
        }
        return sum(nbytes for _, _, nbytes in ranges)

    @property
    def bytes_written(self) -> int:
        """Bytes of the output shards."""
        return sum(shard.nbytes for shard in self.shards)


@dataclass(frozen=True)
class TextFile:
    """A small output file given by its text."""

    text: str


@dataclass(frozen=True)
class CopiedFile:
    """A small output file copied from ``path``."""

    path: str
