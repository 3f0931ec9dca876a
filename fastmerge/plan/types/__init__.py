"""What a plan consists of: the tensors that are read, the files that are written, and the whole."""

from .inputs import Adapter, Dropped, Gathered, InputModel, InputTensor, Made, ReadFile, Run
from .outputs import AsState, Entry, OutputTensor, Shard, TrainingState
from .plan import Plan
from .small import CopiedFile, DataFile, PiecedFile, Range, SmallFile, TextFile

__all__ = [
    "Adapter", "AsState", "CopiedFile", "DataFile", "Dropped", "Entry", "Gathered", "InputModel", "InputTensor", "Made",
    "OutputTensor", "PiecedFile", "Plan", "Range", "ReadFile", "Run", "Shard", "SmallFile", "TextFile", "TrainingState",
]  # fmt: skip
