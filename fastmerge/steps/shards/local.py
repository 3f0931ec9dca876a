"""Steps on local parts: what a step that is told of a whole tensor does to the part that this rank holds."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ...kernels import ALL_EQUAL, Keep, keep_on_rows
from ...kernels.keep import RULE_ALL, RULE_BAND, RULE_RANDOM
from ..apply import Apply, Copy, ElementwiseMerge, SpanSum, SparseMerge, WeightedSum
from ..inputs import Inputs
from ..source import Chunk
from .runs import Columns, Runs

# Bytes of the output and all inputs whose columns are put together at a time.
AT_ONCE = 32 << 20
# Pieces that are merged side by side, on a GPU in one launch where the step can. Of more, CPUs are slower.
PIECES = 64


def apply_to_part(step: Apply, runs: Runs, out: Tensor, inputs: Inputs[Tensor]) -> None:
    """Apply a step to the part of a tensor that has these runs: at once where that can be, else by pieces."""
    local = localized(step, runs)
    if local is None:
        apply_by_pieces(step, runs, out, inputs)
    else:
        local(out, Chunk.of(inputs))


def apply_by_pieces(step: Apply, runs: Runs, out: Tensor, inputs: Inputs[Tensor]) -> None:
    """Apply a step to runs that have several lengths or distances: to those that are alike, or single ones, each.

    Planes of two dimensions are a piece for each matrix, which takes a fifth longer than one call would (128 of 131072
    elements, one core). Columns of a strided shard whose pieces are of two lengths would be two pieces in each row:
    they are put together by column.
    """
    flat, every = out.view(-1), inputs.map(lambda tensor: tensor.view(-1))
    columns = runs.columns if len(runs.alike) > PIECES else None
    if columns is not None and localized(step, columns.runs(0, 0, columns.rows)) is not None:
        _apply_by_column(step, columns, flat, every)
        pieces = [piece for place, some in columns.outside for piece in _pieces(step, some, place)]
    else:
        pieces = [piece for place, some in runs.alike for piece in _pieces(step, some, place)]
    for few in (pieces[i : i + PIECES] for i in range(0, len(pieces), PIECES)):
        outs = [flat[span] for _, span, _ in few]
        chunks = [
            Chunk.of(every.map(lambda tensor, span=span: tensor[span]), offset)  # type: ignore[misc]
            for _, span, offset in few
        ]
        step.apply_all([part for part, _, _ in few], outs, chunks)


def _apply_by_column(step: Apply, columns: Columns, out: Tensor, inputs: Inputs[Tensor]) -> None:
    """Apply a step to columns of rows that are alike: each is copied together, many rows at a time, and back."""
    row_bytes = columns.width * sum(tensor.element_size() for tensor in (out, *inputs.every))
    many = max(1, AT_ONCE // row_bytes)
    for top in range(0, columns.rows, many):
        below = min(top + many, columns.rows)
        for column in range(columns.each):
            own, target = columns.runs(column, top, below), columns.view(out, column, top, below)
            made = target.new_empty(own.numel)
            held = inputs.map(lambda t, at=(column, top, below): columns.view(t, *at).contiguous().view(-1))  # type: ignore[misc]
            for local, span, offset in _pieces(step, own, 0):
                local(made[span], Chunk.of(held.map(lambda t, span=span: t[span]), offset))  # type: ignore[misc]
            target.copy_(made.view(target.shape))


def _pieces(step: Apply, runs: Runs, place: int) -> list[tuple[Apply, slice, int]]:
    """Return the step, the span and the offset of runs that begin at a place: one piece, or one for each run."""
    local = localized(step, runs)
    if local is not None:
        return [(local, slice(place, place + runs.numel), 0)]
    return [(step, slice(place + at, place + at + stop - start), start) for start, stop, at in runs]


def localized(step: Apply, runs: Runs) -> Apply | None:
    """Return the step that does to a local part what ``step`` does to a whole tensor; None where there is none.

    It is ``step`` itself where the place of an element is of no account. Indices begin at 0 with the local part.
    """
    if isinstance(step, Copy | WeightedSum | SpanSum):
        return step
    if isinstance(step, SparseMerge):
        keeps = [rule for keep in step.keeps if (rule := _local_rule(keep, runs)) is not None]
        if len(keeps) < len(step.keeps):
            return None
        return step if keeps == list(step.keeps) else replace(step, keeps=keeps)
    if isinstance(step, ElementwiseMerge):
        inner = None if step.step is None else localized(step.step, runs)
        keep = None if step.selection is None else _local_rule(step.selection.keep, runs)
        if (inner is None) != (step.step is None) or (keep is None) != (step.selection is None):
            return None
        if inner is step.step and (step.selection is None or keep == step.selection.keep):
            return step
        selection = None if step.selection is None or keep is None else replace(step.selection, keep=keep)
        return replace(step, step=inner, selection=selection)  # type: ignore[arg-type]
    return None


def _local_rule(keep: Keep, runs: Runs) -> Keep | None:
    """Return a keep rule in terms of indices of the local part, or None: random numbers follow global ones.

    What is no more than one run need not be told of them: the offset of its chunk is global.
    """
    if keep.rule == RULE_ALL:
        return keep
    if keep.rule == RULE_RANDOM:
        return None if runs.rows is None else keep_on_rows(keep, *runs.rows)
    if keep.rule != RULE_BAND:
        return None
    return keep._replace(b=_local_break(keep.b, runs), d=_local_break(keep.d, runs))


def _local_break(index: int, runs: Runs) -> int:
    return index if index in (0, ALL_EQUAL) else runs.below(index)
