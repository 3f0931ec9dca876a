"""All of a GGUF file but the values of its tensors, by the ``gguf`` package's writer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..checkpoint.gguf.settings import FREQUENCIES
from .layout import Written
from .metadata import Settings
from .tokenizer import Tokenizer

__all__ = ["write_header"]


def write_header(
    path: Path, title: str, kind: str, settings: Settings, tensors: Sequence[Written], tokenizer: Tokenizer | None
) -> None:
    """Write the header of a new file, which has its full size then; the values are zeros."""
    import gguf
    import numpy

    float32 = numpy.dtype("float32")
    writer = gguf.GGUFWriter(path, str(settings.values["general.architecture"]))
    writer.add_name(title)
    writer.add_string("general.quantized_by", f"fastmerge {__version__}")
    writer.add_file_type(_file_type(kind))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in settings.values.items():
        if key != "general.architecture":
            _add(writer, key, value)
    if tokenizer is not None:
        tokenizer.add_to(writer)
    if settings.frequencies:
        count = len(settings.frequencies)
        writer.add_tensor_info(FREQUENCIES, (count,), float32, 4 * count)
    for tensor in tensors:
        raw = gguf.GGMLQuantizationType(tensor.kind)
        writer.add_tensor_info(tensor.name, tensor.shape, float32, tensor.nbytes, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    pad = writer.ggml_pad
    sizes = (path.stat().st_size, 4 * len(settings.frequencies), *(tensor.nbytes for tensor in tensors))
    os.truncate(path, sum(pad(size, writer.data_alignment) for size in sizes))


def _add(writer: Any, key: str, value: int | float | str) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def _file_type(kind: str) -> int:
    import gguf

    kinds = gguf.LlamaFileType
    known = {"f32": kinds.ALL_F32, "f16": kinds.MOSTLY_F16, "bf16": kinds.MOSTLY_BF16, "q8_0": kinds.MOSTLY_Q8_0}
    return int(known[kind])
