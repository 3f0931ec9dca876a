"""What one output tensor needs of a memory, and what the operations on it take beside that."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .. import kernels
from ..checkpoint.types import DECODED_AT_ONCE, DECODING_BYTES, matrix_shape
from ..methods import get_method
from ..plan.types import InputTensor, OutputTensor
from ..steps.stacks import batch_bytes
from .arena import PAGE, round_up
from .folding import made_shapes, working_bytes
from .inputs import beside_bytes, slot_bytes

# Bytes that a run may take beside its budget: threads, modules, tables of the plan.
BESIDE = 64 << 20

# Operations whose memory is part of what methods ask for by ``scratch_bytes``.
BOUNDED_BY_METHODS = {"rank_mask"}

# Operations that only methods on torch's tensors call.
TAKES_TENSORS = {"low_rank"}


def numel_of(output: OutputTensor) -> int:
    """Return the elements of an output."""
    return output.nbytes // output.dtype.itemsize


def resident_bytes(output: OutputTensor) -> int:
    """Return the bytes that all inputs need beside their rows: adapters as float32, parts of codes."""
    return sum(beside_bytes(tensor) for tensor in output.inputs.every)


def gathered_bytes(outputs: Iterable[OutputTensor]) -> int:
    """Return the bytes of the host's memory that gathered inputs hold for the whole run: adapters, parts of codes.

    A part is converted to float32, and turned where it is stored so, while the one that was read is still there.
    """
    gathered = {t.path: t.gathered for output in outputs for t in output.inputs.every if t.gathered is not None}
    held = 0
    for source in (source for own in gathered.values() for source in own.sources):
        for adapter in source.adapters:
            held += sum(2 * 4 * part.numel for part in adapter.parts)
            held += sum(4 * math.prod(shape) for shape in made_shapes(adapter))
        held += sum(part.nbytes for part, by_row in source.coded.parts if not by_row) if source.coded else 0
    return held


def whole_bytes(output: OutputTensor) -> int:
    """Return the bytes of a region that holds every input of a tensor, its adapters, and an output made at once."""
    out = 0 if scratch_bytes(output) is None else round_up(output.nbytes) + PAGE
    return sum(input_bytes(tensor) for tensor in output.inputs.every) + resident_bytes(output) + out


def scratch_bytes(output: OutputTensor) -> int | None:
    """Return what the apply step takes beside a region, for a tensor that it must see whole; None for others."""
    return None if output.group is None else get_method(output.method).scratch_bytes(output.group)


def beside_region(output: OutputTensor, kind: str) -> int:
    """Return what the apply step takes beside a region on a kind of device, where several matrices are a batch."""
    need = scratch_bytes(output)
    if need is None:
        return 0
    return need + (batch_bytes(output.shape) if kind != "cpu" and len(output.shape) > 2 else 0)


def input_bytes(tensor: InputTensor) -> int:
    """Return the bytes of one input in a region, with room to start at any place of a page."""
    return round_up(tensor.numel * tensor.value_dtype.itemsize) + PAGE


def chunk_bytes(output: OutputTensor, elements: int) -> int:
    """Return the slot that one chunk of an output needs; copies read straight into the output's place."""
    elements = min(elements, numel_of(output))
    out = elements * output.dtype.itemsize + PAGE
    if output.group is None:
        return out
    if output.through is not None:
        out += elements * output.through.itemsize + PAGE
    return out + sum(slot_bytes(tensor, elements) for tensor in output.inputs.every)


def kinds_of(outputs: Iterable[OutputTensor]) -> list[OutputTensor]:
    """Return one output of each kind that matters for memory, so that thousands of tensors are measured in no time."""
    kinds: dict[tuple, OutputTensor] = {}
    for output in outputs:
        inputs = tuple((t.dtype, t.adapters, t.rounded, _coding(t)) for t in output.inputs.every)
        key = (output.shape, output.dtype, output.through, output.group is None, scratch_bytes(output), inputs)
        kinds.setdefault(key, output)
    return list(kinds.values())


def _coding(tensor: InputTensor) -> tuple | None:
    """Return what decides how much memory the decoding of a tensor takes."""
    if tensor.coded is None:
        return None
    return tuple((part.nbytes, by_row) for part, by_row in tensor.coded.parts)


def decoding_bytes(kinds: Iterable[OutputTensor]) -> int:
    """Return a bound of what one worker's decoding and folding take beside their arguments (``Coded.decode``)."""
    most = 0
    for tensor in (tensor for output in kinds for tensor in output.inputs.every):
        most = max(most, *(working_bytes(a, matrix_shape(tensor.shape)[1]) for a in tensor.adapters), 0)
        if tensor.coded is not None:
            once = max(DECODED_AT_ONCE, tensor.coded.step * matrix_shape(tensor.shape)[1])
            most = max(most, DECODING_BYTES * min(once, tensor.numel))
    return most


def why_not_compiled(kind: str) -> str | None:
    """Return which operation has no compiled backend on that kind of device, and why, or None.

    BackendError for a pinned backend that cannot run.
    """
    for name, operation in kernels.OPERATIONS.items():
        backend, reason = operation.choose(kind)
        if backend == "reference" and name not in BOUNDED_BY_METHODS:
            return f"{name} has no kernel there ({reason})"
    return None


def why_torch(outputs: Iterable[OutputTensor]) -> str | None:
    """Return why outputs are merged on the processor with torch's tensors, or None where strips will do.

    Strips need the compiled backend, inputs whose bytes are the values, a method that takes them, and one rounding.
    """
    asked: dict[tuple[str, int], bool] = {}
    backend: str | None = None
    for output in outputs:
        if output.group is None:
            continue
        if not asked:
            backend = _why_interpreted()
        if backend is not None:
            return backend
        key = output.method, id(output.group.values)
        if key not in asked:
            asked[key] = get_method(output.method).takes_strips(output.group)
        if not asked[key]:
            return f"{output.name}: {output.method} computes with them"
        if output.through is not None:
            return f"{output.name}: it is rounded twice"
        for tensor in output.inputs.every:
            if not tensor.plain:
                return f"{tensor.path}: {tensor.name} is made of what is stored"
    return None


def _why_interpreted() -> str | None:
    """Return which operation has another backend than the compiled one of the processor, or None."""
    for name, operation in kernels.OPERATIONS.items():
        backend, reason = operation.choose("cpu")
        if backend != "cpu" and name not in TAKES_TENSORS:
            return f"{name} has the backend {backend} ({reason})"
    return None


def outside_bytes(inputs: int, kind: str) -> float:
    """Return a bound of the memory per element that an operation takes besides its arguments.

    The compiled backends work in registers, except that a selection (``kernels.select``) takes up to 0.26 bytes for
    each boundary; methods ask for up to two boundaries per input. Those that draw at random ask for none; what was
    drawn of a tensor that is held whole takes an eighth of a byte per input, from its survey to the end of its merge
    (``NormsAndRules``). The reference makes float32 and int64 temporaries, one per input and about ten more, and malloc
    keeps as much again of those that were freed.
    """
    return 2 * inputs * 0.26 if why_not_compiled(kind) is None else 2 * (8 * inputs + 64)


def spare_bytes(slots: int, inputs: int, elements: int, kind: str) -> int:
    """Return what operations may take beyond that share, in every slot at once.

    A selection collects 2 MiB for each boundary; half of what a run may take beside its budget is there for it. On a
    GPU torch takes memory in blocks of 2 and 20 MiB, and each slot's stream has its own.
    """
    spare = slots * 2 * inputs * min(2 << 20, 4 * elements) if why_not_compiled(kind) is None else 0
    return max(0, spare - BESIDE // 2) + (slots * (22 << 20) if kind == "cuda" else 0)
