"""Parts of output tensors: what several ranks merge of one that is more than the share of each.

A part is an output of its own to all that reads, merges and writes. Its checksums are those of its cells, so that the
parts of a tensor together have the tensor's.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from ..plan.types import InputTensor, OutputTensor
from .checksums import Sums, joined_sums

# A name and a range of elements: what a journal calls a part. No tensor has such a name.
_NAME = re.compile(r"(.*)\0(\d+)-(\d+)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Part(OutputTensor):
    """Consecutive elements of an output: place, bytes, shape and inputs are those of the part.

    Attributes:
        of:      the output.
        start:   its first element, a multiple of ``checksums.BLOCK``.
        apart:   True for slices that are merged as a tensor of their own (``Method.apart``); False where what is asked
                 of the tensor is asked of all parts together.
        holders: ranks that have parts of the output.
    """

    of: OutputTensor
    start: int
    apart: bool = False
    holders: tuple[int, ...] = ()

    @property
    def first(self) -> int:
        """The first element, of what the method takes for the tensor."""
        return 0 if self.apart else self.start

    @property
    def whole_numel(self) -> int:
        """Elements of what the method takes for the tensor."""
        return math.prod(self.shape if self.apart else self.of.shape)


def whole_of(output: OutputTensor) -> OutputTensor:
    """Return the output that ``output`` is a part of, or itself."""
    return output.of if isinstance(output, Part) else output


def span_of(output: OutputTensor) -> tuple[int, int]:
    """Return the first element of an output within the whole one, and the end."""
    start = output.start if isinstance(output, Part) else 0
    return start, start + math.prod(output.shape)


def part_of(output: OutputTensor, start: int, stop: int, apart: bool = False) -> OutputTensor:
    """Return elements ``start .. stop - 1`` of an output whose inputs are plain; itself where these are all.

    ``apart`` as in ``Part``: they are then whole slices along the first dimension.
    """
    if (start, stop) == span_of(output):
        return output
    shape: tuple[int, ...] = (stop - start,)
    group = output.group
    if apart and group is not None:
        shape = ((stop - start) // math.prod(output.shape[1:]), *output.shape[1:])
        group = replace(group, shape=shape)

    def cut(tensor: InputTensor) -> InputTensor:
        size = tensor.dtype.itemsize
        return replace(tensor, offset=tensor.offset + start * size, nbytes=(stop - start) * size, shape=shape)

    size = output.dtype.itemsize
    changed = {
        "name": f"{output.name}\0{start}-{stop}", "shape": shape, "offset": output.offset + start * size,
        "nbytes": (stop - start) * size, "inputs": output.inputs.map(cut), "group": group,
    }  # fmt: skip
    return Part(**{**vars(output), **changed}, of=output, start=start, apart=apart)


def recorded(outputs: Iterable[OutputTensor], names: Iterable[str]) -> list[OutputTensor]:
    """Return the outputs, and parts of them, that have these names: in the order of their places."""
    names = set(names)
    wholes = {output.name: output for output in outputs}
    parts: dict[str, list[OutputTensor]] = {}
    for name in names:
        if (match := _NAME.fullmatch(name)) and match[1] in wholes:
            parts.setdefault(match[1], []).append(part_of(wholes[match[1]], int(match[2]), int(match[3])))
    found = []
    for name, output in wholes.items():
        found += [output] if name in names else sorted(parts.get(name, ()), key=span_of)
    return found


def joined(outputs: Iterable[OutputTensor], sums: Mapping[str, Sums]) -> dict[str, Sums]:
    """Return checksums by name, where a tensor of which all parts have some has one in place of these."""
    found: dict[str, Sums] = {}
    for whole, run in itertools.groupby(recorded(outputs, sums), whole_of):
        parts = list(run)
        own = {part.name: sums[part.name] for part in parts}
        complete = isinstance(parts[0], Part) and not list(gaps(whole, parts))
        found |= {whole.name: joined_sums(list(own.values()))} if complete else own
    return found


def gaps(output: OutputTensor, parts: Iterable[OutputTensor]) -> Iterator[tuple[int, int]]:
    """Yield the ranges of elements of an output that are in none of its parts, which are in order."""
    end = 0
    for start, stop in map(span_of, parts):
        if start > end:
            yield end, start
        end = stop
    if end < span_of(output)[1]:
        yield end, span_of(output)[1]
