"""A model as commands name it, opened to be looked at: ``model``, ``model@revision`` or ``model+adapter``."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass

from ..checkpoint import Checkpoint, InputFile, locate, open_checkpoint, read_adapter
from ..errors import InvalidInput, Problem
from ..plan.adapting import attach
from ..plan.findings import Findings
from ..plan.types import InputTensor
from ..recipe.references import parse_reference
from ..recipe.types import ModelRef

__all__ = ["Adapted", "open_model", "reference_of", "with_adapter"]


@dataclass(frozen=True)
class Adapted:
    """A checkpoint and an adapter on it, as a merge reads them.

    Attributes:
        files:   that are read.
        tensors: by name; shapes and dtypes are those that a merge of this one model writes.
        notes:   what lies beside the weights, and how the adapter fits.
        adapter: the file of the adapter; None without one.
    """

    files: tuple[InputFile, ...]
    tensors: dict[str, InputTensor]
    notes: tuple[str, ...]
    adapter: InputFile | None = None

    @property
    def says(self) -> str:
        """What the adapter does, in words."""
        assert self.adapter is not None
        kinds = Counter(adapter.kind for tensor in self.tensors.values() for adapter in tensor.adapters)
        replaced = sum(tensor.path == self.adapter.path for tensor in self.tensors.values())
        done = [f"{kind} on {count} tensors" for kind, count in kinds.most_common()]
        return ", ".join([*done, f"{replaced} replaced"] if replaced else done)


def reference_of(model: str | os.PathLike[str]) -> ModelRef:
    """Return what a text names; InvalidInput where it is no model."""
    try:
        return parse_reference(os.fspath(model))
    except ValueError as error:
        raise InvalidInput([Problem("model", str(error))]) from None


def open_model(reference: ModelRef) -> Checkpoint:
    """Open a model, without its adapter."""
    return open_checkpoint(locate(reference.path, reference.revision))


def with_adapter(checkpoint: Checkpoint, reference: ModelRef) -> Adapted:
    """Return a checkpoint, decoded, with the adapter that the reference names, if it names one.

    Raises:
        CheckpointError: it cannot be read.
        InvalidInput:    it does not fit the model.
    """
    tensors = {name: InputTensor(0, name, *entry) for name, entry in checkpoint.tensors.items()}
    if reference.lora is None:
        return Adapted(checkpoint.files, tensors, checkpoint.notes)
    adapter = read_adapter(locate(reference.lora.path, reference.lora.revision))
    findings = Findings()
    attach(0, tensors, adapter, checkpoint.config, findings)
    findings.stop()
    return Adapted((*checkpoint.files, adapter.file), tensors, (*checkpoint.notes, *findings.notes), adapter.file)
