"""Where the tensors of a plan lie in a checkpoint that is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..checkpoint import Checkpoint, TensorEntry, open_checkpoint
from ..checkpoint.distributed import with_key
from ..checkpoint.experts import in_block, naming_of
from ..checkpoint.trained import as_hub_model
from ..errors import Problem
from ..plan.types import OutputTensor, Plan, TrainingState


def open_output(folder: str, training: TrainingState | None) -> Checkpoint:
    """Open an output under the names of its plan."""
    if training is None:
        return open_checkpoint(folder)
    return as_hub_model(open_checkpoint(with_key(folder, training.key)), training.names, None)


def under_names_of(plan: Plan, checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint with the block that holds experts called as the plan calls it: Mixtral's has two names."""
    block = naming_of(output.name for output in plan.outputs).block
    names = in_block(checkpoint.tensors, block)
    return replace(checkpoint, tensors={names[name]: entry for name, entry in checkpoint.tensors.items()})


def misfits(output: OutputTensor, checkpoint: Checkpoint) -> Iterator[Problem]:
    """Yield what of a checkpoint is not as the plan has the entries of an output."""
    end = None
    for entry in output.stored:
        found = checkpoint.tensors.get(entry.name)
        if found is None:
            yield Problem(f"{checkpoint.folder}: {entry.name}", "is missing")
            return
        if (found.dtype, found.shape) != (entry.dtype, entry.shape):
            what = f"is {found.dtype} {found.shape}; the merge gives {entry.dtype} {entry.shape}"
            yield Problem(f"{found.path}: {entry.name}", what)
            return
        if end not in (None, (found.path, found.offset)):
            yield Problem(f"{found.path}: {entry.name}", "does not lie behind the expert before it, as in the merge")
            return
        end = found.path, found.offset + found.nbytes


def place_of(output: OutputTensor, checkpoint: Checkpoint) -> TensorEntry | None:
    """Return where an output lies, with the shape that the checkpoint has; None where it, or a part, is not there.

    An output that is an entry of its own may have another shape and dtype; experts in another layout must fit. A stack
    of experts may be an entry of its own in a checkpoint of another tool.
    """
    if not output.entries or output.name in checkpoint.tensors:
        return checkpoint.tensors.get(output.name)
    first = checkpoint.tensors.get(output.stored[0].name)
    if first is None or next(misfits(output, checkpoint), None) is not None:
        return None
    return TensorEntry(first.path, first.offset + output.skip, output.nbytes, output.dtype, output.shape)
