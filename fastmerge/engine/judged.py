"""The sink of ``verify --recipe``: compares a merge, as it is computed again, with the file that a tool wrote."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from ..checkpoint import TensorEntry
from ..dtypes import DType
from ..kernels import GRID
from ..methods import get_method
from ..plan.models import MERGED
from ..plan.types import OutputTensor
from ..steps.inputs import Inputs
from .files import InputFiles
from .judging import Choices, Tolerance
from .reading import Folded

VERDICTS = EQUAL, ROUNDING, UNDECIDED, DIFFERENT = "equal", "within rounding", "undecided", "different"
"""From the best to the worst."""


@dataclass(frozen=True)
class Judged:
    """One tensor of the output.

    Attributes:
        name:    of the tensor.
        verdict: "equal", "within rounding", "different" or "undecided".
        detail:  what differs, and why a verdict is open; "" for equal tensors.
    """

    name: str
    verdict: str
    detail: str = ""


class Judge:
    """A sink that compares results with what lies in the files of the output."""

    def __init__(
        self,
        outputs: Sequence[OutputTensor],
        entries: dict[str, TensorEntry],
        inputs: InputFiles,
        arithmetic: DType | None,
    ):
        self._outputs = {output.name: output for output in outputs}
        self._entries, self._inputs, self._arithmetic = entries, inputs, arithmetic
        self._open: dict[str, _Open] = {}
        self._lock = threading.Lock()
        self.judged: dict[str, Judged] = {}
        self.done = 0

    def write(self, output: OutputTensor, offset: int, data: memoryview, address: int) -> None:
        with self._lock:
            own = self._open.setdefault(output.name, _Open(output, self._entries[output.name], self._arithmetic))
        size = output.dtype.itemsize
        for start in range(0, len(data), GRID * size):
            own.compare((offset + start) // size, data[start : start + GRID * size], self._inputs, self._lock)

    def finish(self, output: OutputTensor, checksum: str, inputs: Sequence[str] = ()) -> None:
        with self._lock:
            self.done += output.nbytes
            own = self._open.pop(output.name, None)
            self.judged[output.name] = own.verdict() if own else Judged(output.name, EQUAL)


class _Open:
    """One tensor that is being compared."""

    def __init__(self, output: OutputTensor, entry: TensorEntry, arithmetic: DType | None):
        self._output, self._entry = output, entry
        self._dtype = arithmetic or min((t.dtype for t in output.inputs.every), key=lambda dtype: dtype.itemsize)
        values = output.group.values if output.group else {}
        models = len(output.inputs.tensors)
        measured = entry.dtype in MERGED
        self._tolerance = Tolerance.of(values, models, self._dtype.torch, entry.dtype.torch) if measured else None
        self._random = output.group is not None and get_method(output.method).random
        self._chooses = output.inputs.base is not None and not values.keys().isdisjoint(("density", "select_topk"))
        self._choices = Choices(self._tolerance.arithmetic if self._tolerance else 0.0, 2 if "gamma" in values else 1)
        self._folded: Inputs[Folded] | None = None
        self._unequal = self._beyond = 0
        self._largest = 0.0

    def compare(self, start: int, data: memoryview, inputs: InputFiles, lock: threading.Lock) -> None:
        """Compare one part of the tensor, from an element on."""
        import torch

        merged = torch.frombuffer(bytearray(data), dtype=self._output.dtype.torch)
        found = torch.empty(len(merged), dtype=self._entry.dtype.torch)
        inputs.read(self._entry.path, self._entry.offset + start * found.itemsize, found.view(torch.uint8).numpy().data)
        same = found == merged.to(found.dtype)
        if found.is_floating_point():
            same |= found.isnan() & merged.isnan()
        if bool(same.all()):
            return
        beyond, difference = ~same, 0.0
        if self._tolerance is not None:
            with lock:
                if self._folded is None:
                    self._folded = self._output.inputs.map(lambda tensor: Folded(tensor, inputs))
            values = self._folded.map(lambda folded: folded.elements(start, start + len(merged)))
            beyond = ~self._tolerance.allows(found, merged, values)
            difference = float((found.float() - merged).abs().max())
            if self._chooses and bool(beyond.any()):
                values = values.map(lambda tensor: tensor[beyond])
                hanging = self._tolerance.deltas(values, self._dtype.torch)
                reachable = bool(self._tolerance.reachable(found[beyond], values).all())
                with lock:
                    self._choices.add(*hanging)
                    self._chooses &= reachable
        with lock:
            self._unequal += int((~same).count_nonzero())
            self._beyond += int(beyond.count_nonzero())
            self._largest = max(self._largest, difference)

    def verdict(self) -> Judged:
        name, numel = self._output.name, max(1, self._output.nbytes // self._output.dtype.itemsize)
        if not self._unequal:
            return Judged(name, EQUAL)
        share = f"{self._unequal} of {numel} elements differ, by at most {self._largest:.3g}"
        if not self._beyond:
            return Judged(name, ROUNDING, share)
        if self._random:
            return Judged(name, UNDECIDED, f"{share}; {self._output.method} draws other random numbers in every tool")
        if self._chooses and self._choices.explain():
            chosen = f"{self._beyond} of them hang on equal magnitudes or on deltas that cancel"
            return Judged(name, ROUNDING, f"{share}; {chosen}")
        return Judged(name, DIFFERENT, f"{share}; {self._beyond} of them by more than rounding explains")
