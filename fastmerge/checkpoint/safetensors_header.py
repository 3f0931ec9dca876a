"""Reader of safetensors headers that trusts nothing: a file is either exactly right or refused.

Layout (github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON object that maps names
to ``dtype``, ``shape`` and ``data_offsets``, then the data without holes up to the end of the file. Stricter
than the library: a duplicate key is an error (the library keeps one of the two without a word).
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from .. import dtypes
from ..dtypes import DType
from ..errors import CheckpointError
from .opening import check_characters, open_weights
from .placeholders import misnamed, placeholder
from .types import InputFile, TensorEntry

MAX_HEADER = 100_000_000
"""Longest header that the safetensors library reads, in bytes."""

DTYPES: dict[str, DType] = {
    "F64": dtypes.float64,
    "F32": dtypes.float32,
    "F16": dtypes.float16,
    "BF16": dtypes.bfloat16,
    "F8_E4M3": dtypes.float8_e4m3fn,
    "F8_E5M2": dtypes.float8_e5m2,
    "F8_E4M3FNUZ": dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": dtypes.float8_e5m2fnuz,
    "F8_E8M0": dtypes.float8_e8m0fnu,
    "F4": dtypes.float4_e2m1fn_x2,
    "I64": dtypes.int64,
    "I32": dtypes.int32,
    "I16": dtypes.int16,
    "I8": dtypes.int8,
    "U64": dtypes.uint64,
    "U32": dtypes.uint32,
    "U16": dtypes.uint16,
    "U8": dtypes.uint8,
    "BOOL": dtypes.bool_,
    "C64": dtypes.complex64,
}
"""Names of dtypes in safetensors headers."""

# Torch has no such types; F4 packs two values in a byte.
_LACKING = ("F6_E2M3", "F6_E3M2")
_PACKED = {"F4": 2}

Parsed = tuple[dict[str, str], dict[str, tuple[int, int, DType, tuple[int, ...]]]]
"""The metadata, and offset, bytes, dtype and shape of every tensor."""

# By digest and size of the file. More shards than most models have.
_KNOWN: dict[tuple[str, int], Parsed] = {}
_MOST_KNOWN = 64

_SIZED = {name: (dtype, dtype.itemsize, _PACKED.get(name, 1)) for name, dtype in DTYPES.items()}


def read_header(path: str) -> tuple[InputFile, dict[str, TensorEntry]]:
    """Return the identity of a safetensors file and its tensors in the order of their offsets; no tensor data is read.

    Raises:
        CheckpointError: the file is missing, truncated or corrupt.
    """
    try:
        with open_weights(path) as file:
            status = os.fstat(file.fileno())
            length = _header_length(path, file.read(8), status.st_size)
            raw = file.read(length)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: {placeholder(path) or f'cannot be read: {error.strerror}'}") from error
    if len(raw) != length:
        raise _corrupt(path, f"the header of {length} bytes ends after {len(raw)}")
    digest = header_digest(raw)
    metadata, ranges = _parsed(path, raw, digest, status.st_size)
    tensors = {name: TensorEntry(path, *place) for name, place in ranges.items()}
    return InputFile(path, status.st_size, status.st_mtime_ns, digest, metadata), tensors


def header_digest(header: bytes) -> str:
    """Return the hash of a header, without its length prefix, by which files are told apart."""
    return hashlib.sha256(header).hexdigest()


def _parsed(path: str, raw: bytes, digest: str, size: int) -> Parsed:
    """Return what a header says; the fine-tunes of a family have the same one, which is parsed once."""
    if (digest, size) not in _KNOWN:
        found = _parse(path, raw, 8 + len(raw), size)
        if len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.clear()
        _KNOWN[digest, size] = found
    return _KNOWN[digest, size]


def _corrupt(path: str, finding: str) -> CheckpointError:
    instead = placeholder(path)
    if instead is None and (what := misnamed(path)):
        instead = f"{what}, not a safetensors file (give it its own name, or download the safetensors file)"
    if instead is not None:
        return CheckpointError(f"{path}: {instead}")
    return CheckpointError(f"{path}: {finding} (the file is corrupt or incomplete: download or save it again)")


def _header_length(path: str, prefix: bytes, size: int) -> int:
    if len(prefix) < 8:
        raise _corrupt(path, f"a safetensors file starts with 8 bytes of header length, this one has {size} bytes")
    length = int.from_bytes(prefix, "little")
    if length > size - 8 or length > MAX_HEADER:
        raise _corrupt(path, f"the header length {length} exceeds the file size {size} or the limit of {MAX_HEADER}")
    return length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {duplicate!r} stands there twice")
    return result


def _parse(path: str, raw: bytes, start: int, size: int) -> Parsed:
    try:
        text = raw.decode("utf-8")
        header = json.loads(text, object_pairs_hook=_unique)
        check_characters(text, header)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"the header is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise _corrupt(path, "the header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _corrupt(path, "__metadata__ does not map strings to strings")

    found = []
    for name, info in header.items():
        try:
            dtype, itemsize, packed = _SIZED[info["dtype"]]
            shape = info["shape"]
            begin, end = info["data_offsets"]
        except (KeyError, TypeError, ValueError):
            raise _invalid(path, name, info) from None
        if type(shape) is not list or type(begin) is not int or type(end) is not int:
            raise _corrupt(path, f"{name}: shape {shape!r} or data_offsets {[begin, end]!r} are not integers")
        nbytes = itemsize
        for extent in shape:
            if type(extent) is not int or extent < 0:
                raise _corrupt(path, f"{name}: shape {shape!r} is not a list of non-negative integers")
            nbytes *= extent
        if packed > 1:
            # Both numbers count values in the header, and bytes of torch's packed dtype here.
            if not shape or shape[-1] % packed:
                raise _corrupt(path, f"{name}: shape {shape!r} does not fill whole bytes of {info['dtype']}")
            shape, nbytes = [*shape[:-1], shape[-1] // packed], nbytes // packed
        if end - begin != nbytes:
            raise _corrupt(path, f"{name}: data_offsets {[begin, end]} hold {end - begin} bytes, its shape {nbytes}")
        found.append((begin, end, name, dtype, tuple(shape)))

    found.sort(key=lambda entry: entry[:2])
    position = 0
    tensors = {}
    for begin, end, name, dtype, shape in found:
        if begin != position:
            kind = "overlap" if begin < position else "leave a hole"
            raise _corrupt(path, f"{name}: data_offsets {[begin, end]} {kind}: expected to begin at {position}")
        position = end
        tensors[name] = start + begin, end - begin, dtype, shape
    if start + position != size:
        raise _corrupt(path, f"the file has {size} bytes, its header describes {start + position}")
    return metadata, tensors


def _invalid(path: str, name: str, info: object) -> CheckpointError:
    if not isinstance(info, dict) or not {"dtype", "shape", "data_offsets"} <= info.keys():
        return _corrupt(path, f"{name}: the entry has no dtype, shape and data_offsets: {info!r:.200}")
    dtype = info["dtype"]
    if isinstance(dtype, str) and dtype in _LACKING:
        what = f"is {dtype}, a dtype of quantized weights that torch does not have"
        return CheckpointError(f"{path}: {name} {what} (dequantize the model to bfloat16 first)")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return _corrupt(path, f"{name}: unknown dtype {dtype!r:.50}, expected one of {', '.join(DTYPES)}")
    return _corrupt(path, f"{name}: data_offsets {info['data_offsets']!r:.100} are not two integers")
