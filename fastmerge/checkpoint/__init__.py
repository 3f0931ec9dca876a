"""Checkpoints on disk or on the hub, by their headers: safetensors, ``.bin``, GGUF, DCP, and PEFT adapters."""

from .folder import open_checkpoint, read_json, read_weights
from .hub_names import looks_like_hub_id
from .locate import locate, passed_over
from .peft import Change, PeftAdapter, is_adapter, read_adapter
from .safetensors_header import DTYPES, read_header
from .types import Checkpoint, Coded, InputFile, TensorEntry

__all__ = [
    "DTYPES",
    "Change",
    "Checkpoint",
    "Coded",
    "InputFile",
    "PeftAdapter",
    "TensorEntry",
    "is_adapter",
    "locate",
    "looks_like_hub_id",
    "open_checkpoint",
    "passed_over",
    "read_adapter",
    "read_header",
    "read_json",
    "read_weights",
]
