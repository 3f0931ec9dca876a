"""What a plan consists of: the tensors that are read, the files that are written, and the whole."""

from .inputs import Adapter, Dropped, Gathered, InputModel, InputTensor, Made, ReadFile, Run
from .outputs import CopiedFile, Entry, OutputTensor, Shard, TextFile
from .plan import Plan

__all__ = [
    "Adapter", "CopiedFile", "Dropped", "Entry", "Gathered", "InputModel", "InputTensor", "Made", "OutputTensor",
    "Plan", "ReadFile", "Run", "Shard", "TextFile",
]  # fmt: skip
