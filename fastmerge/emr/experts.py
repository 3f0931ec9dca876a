"""Reading EMR artifacts: experts in memory, and as checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..engine.folders import appearing
from ..engine.reading import DeltaReader
from ..errors import CheckpointError
from ..extraction.factors_file import FactorsFile
from ..kernels import keep_masked
from ..plan import make_plan
from ..recipe import load as load_recipe

FORMAT = "fastmerge-emr-1"
UNIFIED, MASKS, FACTS = "unified.safetensors", "masks.safetensors", "emr.json"


def load(folder: str | os.PathLike[str]) -> Experts:
    """Open an artifact; nothing but its facts is read.

    Raises:
        CheckpointError: ``folder`` holds none, or a damaged one.
    """
    path = Path(folder)
    try:
        facts = json.loads((path / FACTS).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no {FACTS}; expected a folder that fastmerge.emr.save wrote") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / FACTS}: cannot be read: {error}") from error
    found = facts.get("format") if isinstance(facts, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{path / FACTS}: has the format {found!r}; this version reads {FORMAT}")
    if missing := {"base", "tasks", "scales"} - facts.keys():
        raise CheckpointError(f"{path / FACTS}: lacks {', '.join(sorted(missing))}; save the artifact again")
    return Experts(str(folder), facts["base"], tuple(facts["tasks"]), tuple(facts["scales"]))


def restore(
    folder: str | os.PathLike[str],
    task: str,
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
) -> None:
    """Write the checkpoint of one expert into the folder ``out``: the base's files, with the expert's weights.

    Args:
        base: folder or hub id of the base, where it is no longer what the artifact names.
    Raises:
        KeyError:       there is no such task.
        FastmergeError: ``folder`` holds no artifact, the base cannot be opened, a file is corrupt, or ``out`` exists.
        ValueError:     the base lacks a tensor of the artifact, or has it in another shape.
    """
    experts = load(folder)
    scale = experts._scale(task)
    recipe = {"merge_method": "passthrough", "models": [{"model": os.fspath(base or experts.base)}]}
    plan = make_plan(replace(load_recipe(recipe), path="emr", text=""))
    kinds = {output.name: (tuple(output.shape), output.dtype) for output in plan.outputs}
    with (
        experts._file(UNIFIED) as unified,
        experts._file(MASKS) as masks,
        appearing(out) as target,
        DeltaReader([file for model in plan.models for file in model.files]) as reader,
        FactorsFile(target / "model.safetensors", kinds) as weights,
    ):
        told = {name: tuple(unified.get_slice(name).get_shape()) for name in unified.keys()}  # noqa: SIM118
        for name, shape in told.items():
            if kinds.get(name, (None,))[0] != shape:
                raise ValueError(f"{name} has shape {shape} in {folder}; the base has {kinds.get(name, ('none',))[0]}")
        for output in plan.outputs:
            parts = [part for (part,) in reader.chunks(output.inputs.every)] or [torch.empty(0)]
            tensor = torch.cat(parts).view(tuple(output.shape)).to(output.dtype.torch)
            if output.name in told:
                mask = masks.get_tensor(mask_name(task, output.name))
                _restore(tensor, unified.get_tensor(output.name), mask, scale)
            weights.begin(output.name, *kinds[output.name])
            weights.write(tensor)
        weights.finish()
        for name, file in plan.files.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with file.open() as source:
                (target / name).write_bytes(source.read())


@dataclass(frozen=True)
class Experts:
    """Fine-tunes that can be restored.

    Attributes:
        folder: of the artifact.
        base:   the model that they were tuned from, as it was named.
        tasks:  their names.
        scales: their scales.
    """

    folder: str
    base: str
    tasks: tuple[str, ...]
    scales: tuple[float, ...]

    @property
    def names(self) -> list[str]:
        """The names of the tensors."""
        with self._file(UNIFIED) as file:
            return list(file.keys())

    @torch.no_grad()
    def apply_(self, state: Mapping[str, Tensor], task: str) -> None:
        """Turn the base's weights in ``state`` into those of an expert, in place; other tensors stay as they are.

        Raises:
            KeyError:   there is no such task.
            ValueError: ``state`` lacks a tensor of the artifact, has it in another shape, or has one tensor for two.
        """
        scale = self._scale(task)
        with self._file(UNIFIED) as unified, self._file(MASKS) as masks:
            names = list(unified.keys())
            self._check(state, {name: tuple(unified.get_slice(name).get_shape()) for name in names})
            for name in names:
                _restore(state[name], unified.get_tensor(name), masks.get_tensor(mask_name(task, name)), scale)

    def state_dict(self, base: Mapping[str, Tensor], task: str) -> dict[str, Tensor]:
        """Return the weights of an expert; ``base`` is not changed. Raises as ``apply_``."""
        state = {name: tensor.detach().clone() for name, tensor in base.items()}
        self.apply_(state, task)
        return state

    def _check(self, state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
        places: dict[tuple[torch.device, int], str] = {}
        for name, shape in shapes.items():
            if name not in state:
                raise ValueError(f"state lacks the tensor {name}, which the artifact {self.folder} has")
            if tuple(state[name].shape) != shape:
                raise ValueError(f"{name} has shape {tuple(state[name].shape)}; the artifact has {shape}")
            other = places.setdefault((state[name].device, state[name].data_ptr()), name)
            if other != name and state[name].numel():
                raise ValueError(f"{name} and {other} are one tensor of the state; the artifact has two")

    def _scale(self, task: str) -> float:
        if task not in self.tasks:
            raise KeyError(f"{self.folder} has no task {task!r}; it has {', '.join(self.tasks)}")
        return self.scales[self.tasks.index(task)]

    def _file(self, name: str) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(Path(self.folder) / name, "pt")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.folder}: {name} cannot be read: {error}") from error


def _restore(tensor: Tensor, delta: Tensor, mask: Tensor, scale: float) -> None:
    """Add ``scale * delta`` to ``tensor`` where the mask is set, rounded once."""
    part = torch.zeros(delta.shape, dtype=torch.float32, device=tensor.device)
    delta, mask = delta.to(tensor.device), mask.to(tensor.device)
    kernels.sparse_merge(part, part, [delta], factors=[1.0], keeps=[keep_masked(mask)])
    kernels.weighted_sum(tensor, [tensor, part], [1.0, scale])


def mask_name(task: str, name: str) -> str:
    """Return what the mask of a tensor is called in the file of the masks."""
    return f"{task}/{name}"
