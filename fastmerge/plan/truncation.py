"""Cuts embeddings and heads to the smallest vocabulary: what mergekit calls unsafe, and what it once did unasked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import InvalidInput, Problem
from .findings import Findings
from .models import has_token_rows
from .rows import Row
from .types import Adapter, InputTensor


def truncate_vocabularies(rows: Sequence[Row], findings: Findings) -> list[Row]:
    """Return the rows with every tensor of the vocabulary cut to the rows that all models have.

    It is right only where equal token ids mean equal tokens; a note says what was cut.
    """
    cut = []
    for row in rows:
        shapes = {tensor.shape for tensor in row.inputs.every}
        if len(shapes) == 1 or not has_token_rows(row.name) or len({shape[1:] for shape in shapes}) > 1:
            cut.append(row)
            continue
        least, most = min(shape[0] for shape in shapes), max(shape[0] for shape in shapes)
        findings.note(f"{row.name}: only the first {least} of up to {most} rows are merged; token ids must agree")
        tensors = [_first_rows(tensor, least) for tensor in row.inputs.every]
        cut.append(replace(row, inputs=row.inputs.like(tensors)))
    return cut


def _first_rows(tensor: InputTensor, count: int) -> InputTensor:
    adapters = tuple(_first_rows_of(adapter, count) for adapter in tensor.adapters)
    nbytes = tensor.nbytes // tensor.shape[0] * count
    return replace(tensor, nbytes=nbytes, shape=(count, *tensor.shape[1:]), adapters=adapters)


def _first_rows_of(adapter: Adapter, count: int) -> Adapter:
    if adapter.kind not in ("lora", "dora") or adapter.transposed:
        first = adapter.parts[0]
        what = f"is adapted by {first.path}, whose factors cannot be cut"
        raise InvalidInput([Problem(first.name, what, "merge the adapter into its base first")])
    up, down, *magnitude = adapter.parts
    return replace(adapter, parts=(_first_rows(up, count), down, *(_first_rows(m, count) for m in magnitude)))
