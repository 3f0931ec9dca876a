"""Inputs that no file holds: rows of several tensors, put together as they are read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from threading import Lock
from typing import TYPE_CHECKING

from ..checkpoint import InputFile
from ..dtypes import float32, promoted
from ..plan.types import InputTensor, Plan, Run
from .files import InputFiles
from .making import MadeValues
from .reading import Folded

if TYPE_CHECKING:
    from torch import Tensor

# Elements that are converted, decoded or averaged at once.
_STEP = 1 << 16
# Rows of a block whose sum is a tree of additions: the mean does not depend on how a tensor is read.
_BLOCK = 64


class PlannedFiles(InputFiles):
    """The files of a plan's models, and more; a gathered or made tensor is read like a range of a file of its own."""

    def __init__(self, plan: Plan, more: Iterable[InputFile] = ()):
        super().__init__((*(file for model in plan.models for file in model.files), *more))
        self._gathered: dict[str, _Rows | MadeValues] = {p: _Rows(tensor, self) for p, tensor in plan.gathered.items()}
        self._gathered |= {path: MadeValues(tensor) for path, tensor in plan.made.items()}

    def open(self) -> None:
        super().open()
        for rows in self._gathered.values():
            rows.open()

    def plain(self, path: str, offset: int) -> int | None:
        return None if path in self._gathered else super().plain(path, offset)

    def read(self, path: str, offset: int, into: memoryview) -> None:
        rows = self._gathered.get(path)
        if rows is None:
            super().read(path, offset, into)
        else:
            rows.read(offset, into)


class _Rows:
    """A gathered tensor. Any number of threads may read it."""

    def __init__(self, tensor: InputTensor, files: InputFiles):
        assert tensor.gathered is not None
        self._dtype, self._files = tensor.dtype, files
        self._width = tensor.shape[-1] if len(tensor.shape) > 1 else 1
        self._gathered = tensor.gathered
        self._starts = [run.start for run in tensor.gathered.runs]
        self._sources: list[Folded] = []
        self._lock = Lock()
        self._made: Tensor | None = None

    def open(self) -> None:
        """Read what the sources need beside their rows."""
        self._sources = [Folded(source, self._files) for source in self._gathered.sources]
        self._made = None

    def read(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` with the bytes from ``offset`` on, both multiples of an element."""
        import torch

        if len(into):
            at = offset // self._dtype.itemsize
            self._elements(at, torch.frombuffer(into, dtype=self._dtype.torch))

    def _elements(self, at: int, out: Tensor) -> None:
        import torch

        end, padding = at + len(out), self._gathered.mean_from * self._width
        first = max(bisect_right(self._starts, at // self._width) - 1, 0)
        for index in range(first, len(self._starts)):
            run = self._gathered.runs[index]
            begin = run.start * self._width
            start, stop = max(at, begin), min(end, begin + run.count * self._width)
            if begin >= end:
                break
            if start < stop:
                self._fill(run, start - begin, out[start - at : stop - at])
        if end > padding:
            mean, rest = self._mean(), out[max(padding - at, 0) :]
            columns = torch.arange(end - len(rest), end) % self._width
            rest.copy_(mean[columns])

    def _fill(self, run: Run, skip: int, out: Tensor) -> None:
        """Write the elements of a run from ``skip`` on."""
        import torch

        places = [(source, row * self._width + skip) for source, row in run.terms]
        if not places:
            out.zero_()
            return
        if len(places) == 1:
            ((source, begin),) = places
            stored = self._gathered.sources[source]
            if stored.plain and stored.dtype == self._dtype:
                data = out.view(torch.uint8).numpy().data
                self._files.read(stored.path, stored.offset + begin * self._dtype.itemsize, data)
                return
        for start in range(0, len(out), _STEP):
            part = out[start : start + _STEP]
            if len(places) == 1:
                ((source, begin),) = places
                part.copy_(self._sources[source].elements(begin + start, begin + start + len(part)))
                continue
            total = torch.zeros(len(part), dtype=promoted((float32, self._dtype)).torch)
            for source, begin in places:
                total += self._sources[source].elements(begin + start, begin + start + len(part))
            part.copy_(total.div_(len(places)))

    def _mean(self) -> Tensor:
        """Return the mean of the rows that are not padding; summed in float64."""
        import torch

        with self._lock:
            if self._made is None:
                rows = self._gathered.mean_from
                total = torch.zeros(self._width, dtype=torch.float64)
                for start in range(0, rows, _BLOCK):
                    count = min(_BLOCK, rows - start)
                    block = torch.zeros(_BLOCK * self._width, dtype=self._dtype.torch)
                    self._elements(start * self._width, block[: count * self._width])
                    tree = block.view(_BLOCK, self._width).double()
                    while len(tree) > 1:
                        tree = tree[: len(tree) // 2] + tree[len(tree) // 2 :]
                    total += tree[0]
                self._made = (total / rows).to(self._dtype.torch)
            return self._made
