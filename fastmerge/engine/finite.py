"""Numbers that are not finite: noticed at the speed of the cache, and then found in the inputs, by name."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from ..dtypes import DType, bfloat16, float16, float32, float64
from ..errors import CheckpointError, Refused
from ..kernels import FLOATS, cpu_extension, why_no_cpu_extension
from ..plan.types import InputTensor, OutputTensor
from .files import InputFiles
from .parts import whole_of

# Integers as wide as the numbers, and infinity as one of them: whatever is not finite lies beyond it, by sign.
_PATTERNS: dict[DType, tuple[np.dtype, int]] = {
    float32: (np.dtype(np.int32), 0x7F800000),
    bfloat16: (np.dtype(np.int16), 0x7F80),
    float16: (np.dtype(np.int16), 0x7C00),
}

_LARGEST = {
    float64: sys.float_info.max,
    float32: (2 - 2.0**-23) * 2.0**127,
    bfloat16: (2 - 2.0**-7) * 2.0**127,
    float16: 65504.0,
}

# What numpy takes at a time stays in the cache, for the second look.
_BYTES = 1 << 18

REMEDY = "repair that model or leave it out, or keep such values with --allow-nonfinite where the method can"


def all_finite(data: memoryview, dtype: DType) -> bool:
    """True when no number in ``data`` is infinite or NaN; always True for dtypes that are not merged."""
    if dtype not in _PATTERNS:
        return True
    if why_no_cpu_extension() is None:
        return cpu_extension().all_finite(data, FLOATS.index(dtype))
    kind, infinity = _PATTERNS[dtype]
    signed = np.frombuffer(data, kind)
    unsigned = signed.view(kind.str.replace("i", "u"))
    negative = infinity | 1 << (8 * kind.itemsize - 1)
    step = _BYTES // kind.itemsize
    return all(
        signed[start : start + step].max() < infinity and unsigned[start : start + step].max() < negative
        for start in range(0, len(signed), step)
    )


class Suspect(Exception):
    """A merge of ``outputs`` cannot be right: the result is not finite, or the method says that it cannot be made.

    Raised by workers. ``refusal`` looks into the inputs for the reason.
    """

    def __init__(self, outputs: Sequence[OutputTensor], reason: str = ""):
        super().__init__(reason)
        self.outputs, self.reason = list(map(whole_of, outputs)), reason

    def refusal(self, inputs: InputFiles) -> Refused:
        """Return the error to raise: it names the first input that holds NaN or infinity, else the reason."""
        buffer = memoryview(bytearray(_BYTES))
        for output in self.outputs:
            for tensor in output.inputs.every:
                for part in tensor.stored:
                    if found := _finding(inputs, part, buffer):
                        name = part.name if isinstance(part, InputTensor) else tensor.name
                        because = f" ({self.reason})" if self.reason else ""
                        return Refused(f"{part.path}: {name}: holds {found}{because}; {REMEDY}")
        if self.reason:
            return Refused(self.reason)
        output = self.outputs[0]
        most = f"{_LARGEST[output.dtype]:.3g}"
        return Refused(
            f"{output.name}: the merge gives values beyond {most}, the range of {output.dtype}, though its "
            "inputs are finite; give dtype: bfloat16 or float32, smaller weights, or keep such values with "
            "--allow-nonfinite"
        )


def _finding(inputs: InputFiles, part, buffer: memoryview) -> str:
    """Return what in a stored tensor is not finite and where, or ""."""
    pattern = _PATTERNS.get(part.dtype) if getattr(part, "coded", None) is None else None
    if pattern is None:
        return ""
    kind, infinity = pattern
    nans = infinities = 0
    first = None
    for start in range(0, part.nbytes, len(buffer)):
        data = buffer[: min(len(buffer), part.nbytes - start)]
        try:
            inputs.read(part.path, part.offset + start, data)
        except CheckpointError:  # the file went away: that is not what we look for
            return ""
        magnitudes = np.frombuffer(data, kind) & (2 ** (8 * kind.itemsize - 1) - 1)
        nans += int(np.count_nonzero(magnitudes > infinity))
        infinities += int(np.count_nonzero(magnitudes == infinity))
        if first is None and nans + infinities:
            first = start // kind.itemsize + int(np.argmax(magnitudes >= infinity))
    if first is None:
        return ""
    what = [f"{count} {name}" for count, name in ((nans, "NaN"), (infinities, "infinite values")) if count]
    place = [int(i) for i in np.unravel_index(first, part.shape or (1,))]
    return f"{' and '.join(what)}, the first at {place}"
