"""The bytes of GGUF tensors, a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..checkpoint.gguf.values import FLOATS
from ..checkpoint.types import matrix_shape
from ..engine.files import InputFiles
from ..engine.reading import Values
from ..errors import CheckpointError
from .layout import Written

__all__ = ["AT_ONCE", "encoded"]

# Elements that are held at once: a row, or the rows of a head, may be more.
AT_ONCE = 1 << 20

_MOST_Q8_0 = 65504 * 127.0  # the scale is float16


def encoded(tensor: Written, inputs: InputFiles, where: str) -> Iterator[memoryview]:
    """Yield the bytes of a tensor in the order of the file.

    Raises:
        CheckpointError: a value that is not finite, or that the type cannot hold.
    """
    for source in tensor.sources:
        rows, columns = matrix_shape(source.shape)
        step = 1
        if tensor.heads:
            rows, columns = source.shape[0], math.prod(source.shape[1:])
            step = rows // tensor.heads
        reader = Values(source, inputs)
        many = max(1, AT_ONCE // max(columns * step, 1)) * step
        for first in range(0, rows, many):
            last = min(first + many, rows)
            values = reader.elements(first * columns, last * columns).view(-1, columns)
            if tensor.heads:
                values = values.view(-1, 2, step // 2, columns).transpose(1, 2).reshape(-1, columns)
            if tensor.shift:
                values = values.float() + tensor.shift
            yield _bytes(values, tensor, where)


def _bytes(values: Tensor, tensor: Written, where: str) -> memoryview:
    if not bool(values.isfinite().all()):
        raise CheckpointError(f"{where}: {tensor.name} holds NaN or infinity (check the model with fastmerge diff)")
    if tensor.kind in FLOATS:
        result = values.to(FLOATS[tensor.kind].torch)
        fits = bool(result.isfinite().all())
    else:
        result, fits = _q8_0(values.float()), bool((values.abs() <= _MOST_Q8_0).all())
    if not fits:
        raise CheckpointError(f"{where}: {tensor.name} holds values that the type cannot hold (take --type bf16)")
    return result.contiguous().view(-1).view(torch.uint8).numpy().data


def _q8_0(values: Tensor) -> Tensor:
    import numpy
    from gguf import GGMLQuantizationType, quants

    with numpy.errstate(all="ignore"):  # blocks so small that their scale is 0
        return torch.from_numpy(quants.quantize(values.numpy(), GGMLQuantizationType.Q8_0))
