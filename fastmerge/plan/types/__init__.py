"""What a plan consists of: the tensors that are read, the files that are written, and the whole."""

from .inputs import Adapter, Dropped, Gathered, InputModel, InputTensor, Made, ReadFile, Run
from .outputs import CopiedFile, DataFile, Entry, OutputTensor, Shard, SmallFile, TextFile, TrainingState
from .plan import Plan

__all__ = [
    "Adapter", "CopiedFile", "DataFile", "Dropped", "Entry", "Gathered", "InputModel", "InputTensor", "Made",
    "OutputTensor", "Plan", "ReadFile", "Run", "Shard", "SmallFile", "TextFile", "TrainingState",
]  # fmt: skip
