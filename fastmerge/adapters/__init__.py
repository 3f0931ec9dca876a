"""LoRA adapters merged into an adapter, factors with factors: in memory, and from folder to folder."""

from .core_space import merge_adapters
from .folders import AdapterReport, merge_adapter_folders

__all__ = ["AdapterReport", "merge_adapter_folders", "merge_adapters"]
