"""What the files of an output call its tensors, where the experts that were merged are not what they store."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...checkpoint.experts import Naming, single_of, stack_of
from ..findings import Findings
from ..types import Entry, OutputTensor

_WHOLE = re.compile(r"(.*\.experts\.)(\d+)\.((?:gate_up|down)_proj)\.(weight|bias)")


def with_entries(outputs: Sequence[OutputTensor], donor: Naming, findings: Findings) -> list[OutputTensor]:
    """Return the outputs with the entries of their files, in the layout of the first model, ``donor``.

    Experts that were merged one by one are parts of the stack that it has; a stack that was merged as one is the
    experts that it has, one behind the other.
    """
    if donor.stacked is None:
        return list(outputs)
    if donor.stacked:
        return list(_as_parts(outputs, findings))
    return [_as_several(output, donor) for output in outputs]


def _as_parts(outputs: Sequence[OutputTensor], findings: Findings) -> Iterator[OutputTensor]:
    """Yield the outputs; those that are one projection of one expert, as parts of a stack, in its order."""
    stacks: dict[str, dict[tuple[int, int], OutputTensor]] = {}
    named = {}
    for output in outputs:
        part = _part(output.name)
        if part is not None:
            name, place = part
            stacks.setdefault(name, {})[place] = output
            named[output.name] = name
    done = set()
    for output in outputs:
        if output.name not in named:
            yield output
        elif (name := named[output.name]) not in done:
            done.add(name)
            yield from _stacked(name, stacks[name], findings)


def _part(name: str) -> tuple[str, tuple[int, int]] | None:
    """Return the stack that an expert's weight is a part of, and its place: expert, and half."""
    if single := single_of(name):
        before, block, parameter = single.stack
        return f"{before}{block}.experts.{parameter}", (single.expert, single.half)
    # Stacks whose halves lie side by side in every row are merged by experts, and not by halves; biases likewise.
    if match := _WHOLE.fullmatch(name):
        return f"{match[1]}{match[3]}{'_bias' if match[4] == 'bias' else ''}", (int(match[2]), 0)
    return None


def _stacked(name: str, parts: dict[tuple[int, int], OutputTensor], findings: Findings) -> Iterator[OutputTensor]:
    order = sorted(parts)
    halves, experts = 1 + order[-1][1], 1 + order[-1][0]
    first = parts[order[0]]
    rows, *columns = first.shape
    alike = {(part.dtype, part.shape) for part in parts.values()}
    if order != [(i, j) for i in range(experts) for j in range(halves)] or len(alike) > 1:
        what = f"{len(parts)} of {experts * halves} parts are merged, of {len(alike)} dtypes and shapes"
        findings.problem(name, what, "a stack of experts is written whole: give all of them one dtype and one rule")
        return
    entry = Entry(name, first.dtype, (experts, halves * rows, *columns))
    for i, place in enumerate(order):
        yield replace(parts[place], entries=(entry,), skip=i * first.nbytes)


def _as_several(output: OutputTensor, donor: Naming) -> OutputTensor:
    """Return a stack as the experts that it consists of."""
    stack = stack_of(output.name)
    if stack is None or len(output.shape) != 3:
        return output
    roles = ("down",) if stack.parameter == "down_proj" else ("gate", "up")
    experts, rows, columns = output.shape
    shape = (rows // len(roles), columns)
    names = [
        f"{stack.before}{stack.block}.experts.{i}.{donor.projections[role]}.weight"
        for i in range(experts)
        for role in roles
    ]
    entries = tuple(Entry(name, output.dtype, shape) for name in names)
    assert math.prod(output.shape) == len(names) * math.prod(shape)
    return replace(output, entries=entries)
