"""What is fuzzed: each target writes files into a folder, and then does what a command would do with them."""

from __future__ import annotations

from .codes import Gguf, Quantized
from .models import Config, Index, Safetensors
from .pickles import Bin, Distributed
from .recipes import Adapter, Recipe
from .target import Target, write_model

__all__ = ["TARGETS", "write_model"]


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (Safetensors(), Index(), Config(), Adapter(), Bin(), Recipe(), Quantized(), Gguf(), Distributed())
}
