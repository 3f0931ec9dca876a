"""The driver of a merge, tensor by tensor: survey, solve, apply."""

from __future__ import annotations

from torch import Tensor

from .apply import Apply
from .methods import Group, Method
from .source import Source


def solve(method: Method, group: Group, source: Source) -> Apply:
    """Run the surveys that ``method`` asks for over ``source`` and return its apply step."""
    step = method.merge(group)
    if isinstance(step, Apply):
        return step
    answer = None
    while True:
        try:
            survey = step.send(answer)
        except StopIteration as stop:
            return stop.value
        answer = survey.run(source)


def merge_source(method: Method, group: Group, source: Source, out: Tensor) -> None:
    """Merge a source into ``out`` (the whole tensor, in memory)."""
    apply = solve(method, group, source)
    flat = out.view(-1)
    for chunk in source.chunks():
        start = chunk.offset
        apply(flat[start : start + chunk.tensors[0].numel()].view_as(chunk.tensors[0]), chunk)
