"""The driver of a merge, tensor by tensor: survey, solve, apply."""

from __future__ import annotations

from torch import Tensor

from .apply import Apply
from .methods import Group, Method
from .source import Source


def solve_without_data(method: Method, group: Group) -> Apply | None:
    """Return the apply step if ``method`` needs no survey of this tensor, else None. Nothing is read.

    Planning calls it for every tensor: a step that is a ``Copy`` needs no arithmetic, and a method
    refuses parameters that contradict each other here, with a ValueError, before a merge starts.
    """
    step = method.merge(group)
    if isinstance(step, Apply):
        return step
    try:
        next(step)
    except StopIteration as stop:
        return stop.value
    step.close()
    return None


def solve(method: Method, group: Group, source: Source) -> Apply:
    """Run the surveys that ``method`` asks for over ``source`` and return its apply step.

    ValueError names the tensor where the method needs it whole and ``source`` holds it in parts.
    """
    if method.scratch_bytes(group) is not None and not source.whole:
        raise ValueError(f"{group.name}: {method.name} needs the whole tensor at once; its source has it in parts")
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
    """Merge a source into ``out``: the whole tensor, contiguous, in memory."""
    apply = solve(method, group, source)
    flat = out.view(-1)
    for chunk in source.chunks():
        like = chunk.tensors[0]
        apply(flat[chunk.offset : chunk.offset + like.numel()].view_as(like), chunk)
