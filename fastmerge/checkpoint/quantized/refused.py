"""Quantized weights that are not read here, by the names that people know them by."""

from __future__ import annotations

from collections.abc import Mapping

from ...dtypes import bool_, int64, uint64
from ...errors import CheckpointError
from ..types import TensorEntry
from ._stored import Stored
from .fp4 import PAIRS
from .scaled import E8M0, FLOAT8

# Methods of a config whose tensors the formats of this package hold.
READ = (
    "", "fp8", "mxfp8", "fbgemm_fp8", "deepseek_fp8", "compressed-tensors", "compressed_tensors", "sparseml",
    "modelopt", "modelopt_fp4", "nvfp4", "mxfp4", "gptq", "gptqmodel", "awq", "auto-round", "bitsandbytes", "mlx",
)  # fmt: skip

# Endings of names that only one format has.
_TELLING = {
    ".trellis": "EXL3",
    ".q_weight": "EXL2",
    ".W_q": "HQQ",
    ".codebooks": "AQLM",
    ".weight._data": "quanto",
    "weight_qdata": "torchao",
    "weight__data": "torchao",
    "weight:qdata": "torchao",
    "weight:_data": "torchao",
    ".weight_scales": "EETQ",
    ".bitmask": "sparse compressed-tensors",
    "_bitmask": "sparse compressed-tensors",
    ".qbiases": "metal",
    ".Qidxs": "QuIP#",
    ".indices": "VPTQ",
}
_REMEDY = "use the original checkpoint, or dequantize it to bfloat16 with the tool that quantized it"

_NEVER_WEIGHTS = (bool_, int64, uint64)
_CODE_NAMES = ("weight", "_packed", "_blocks", "_qweight", "qweight", "codes", "trellis", "W_q", "_data", "qdata")


def refuse_method(stored: Stored) -> None:
    """Raise CheckpointError where the config names a method that is not read, or one that changes other tensors."""
    for section in stored.settings:
        method = str(section.get("quant_method") or "").lower()
        if method not in READ:
            raise CheckpointError(f"{stored.folder}/config.json: the weights are quantized by {method} ({_REMEDY})")
        packing = str(section.get("packing_format") or section.get("backend") or "")
        if method == "auto-round" and not packing.endswith(("auto_gptq", "auto_awq", ":gptq", ":awq")):
            raise CheckpointError(
                f"{stored.folder}/config.json: the weights are quantized by auto-round in the layout {packing!r} "
                f"({_REMEDY})"
            )
        transform = section.get("transform_config")
        if isinstance(transform, dict) and transform.get("config_groups"):
            raise CheckpointError(
                f"{stored.folder}/config.json: transform_config: the weights are rotated for quantization ({_REMEDY})"
            )
        sparse = section.get("sparsity_config")
        if isinstance(sparse, dict) and str(sparse.get("format") or "dense") not in ("dense", ""):
            raise CheckpointError(f"{stored.folder}/config.json: the weights are {sparse['format']} ({_REMEDY})")


def leftover_codes(stored: Stored, rest: Mapping[str, TensorEntry]) -> None:
    """Raise CheckpointError where a tensor that no format took holds codes and not numbers."""
    codes = [name for name, entry in rest.items() if _holds_codes(name, entry)]
    if not codes:
        return
    known = next((tool for end, tool in _TELLING.items() if any(name.endswith(end) for name in rest)), None)
    dtypes = sorted({str(rest[name].dtype) for name in codes})
    what = f"{len(codes)} tensors are {', '.join(dtypes)}: codes"
    what += f" of {known}, which is not read" if known else " without the scales that make them weights"
    listed = ", ".join(codes[:5]) + (", ..." if len(codes) > 5 else "")
    raise CheckpointError(f"{stored.folder}: {what}: {listed} ({_REMEDY})")


def _holds_codes(name: str, entry: TensorEntry) -> bool:
    if entry.dtype in FLOAT8 or entry.dtype == E8M0:
        return True
    if entry.dtype.is_floating_point or entry.dtype.is_complex or entry.dtype in _NEVER_WEIGHTS:
        return entry.dtype in PAIRS
    # Small integers that are weights by their name; masks and positions are not.
    return name.endswith(_CODE_NAMES) or any(name.endswith(end) for end in _TELLING)
