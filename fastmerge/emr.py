"""EMR artifacts: several fine-tunes of one base in little more than the space of one (Huang et al. 2024).

    import fastmerge.emr

    fastmerge.emr.save("base", {"code": "org/coder", "math": "org/mathematician"}, "emr")
    experts = fastmerge.emr.load("emr")
    experts.apply_(model.state_dict(), "math")        # base weights become those of an expert, in place

A folder holds ``unified.safetensors`` (the unified delta, one for all), ``masks.safetensors`` (one bit per element and
task, as int32 words, lowest bit first) and ``emr.json`` (base, tasks, scales). The formulas are those of the merge
method ``emr``, which makes one expert from the checkpoints themselves, with the same bits.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import kernels
from .dtypes import DType, bfloat16, float16, float32, int32
from .engine.folders import appearing
from .engine.reading import DeltaReader
from .errors import CheckpointError, FastmergeError, InvalidInput, Problem
from .extraction.factors_file import FactorsFile
from .kernels import GRID, keep_all, keep_masked, mask_words
from .methods.emr import scale_of, unify
from .plan import make_plan
from .plan.types import OutputTensor, TextFile
from .recipe import load as load_recipe

if TYPE_CHECKING:
    from .checkpoint import InputFile

__all__ = ["Experts", "load", "restore", "save"]

FORMAT = "fastmerge-emr-1"
UNIFIED, MASKS, FACTS = "unified.safetensors", "masks.safetensors", "emr.json"
DTYPES = {kind.name: kind for kind in (float32, bfloat16, float16)}

Progress = Callable[[int, int], None]


def save(
    base: str | os.PathLike[str],
    models: Mapping[str, str | os.PathLike[str]] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    progress: Progress | None = None,
) -> Experts:
    """Write the artifact of fine-tunes of one base into the folder ``out``, and return it. Reads every input once.

    Args:
        base:     folder or hub id, as recipes name models.
        models:   fine-tunes by the names of their tasks; of a sequence, "0", "1" and so on.
        out:      folder; it appears when it is complete.
        dtype:    of the unified delta: float32, bfloat16 or float16. Scales are those of what is stored.
        progress: called with the input bytes that were read, and all of them.
    Raises:
        InvalidInput:   models do not match the base or cannot be opened; all problems are named.
        FastmergeError: a file is corrupt, a delta is not finite, or ``out`` exists.
        ValueError:     ``dtype`` is none of the three.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    named = models if isinstance(models, Mapping) else {str(i): model for i, model in enumerate(models)}
    outputs, files = _paired(os.fspath(base), {task: os.fspath(model) for task, model in named.items()})
    total = sum(tensor.nbytes for output in outputs for tensor in output.inputs.every)
    told = None if progress is None else lambda done: progress(min(done, total), total)
    shapes = {output.name: tuple(output.shape) for output in outputs}
    words = {
        _mask_name(task, name): ((mask_words(math.prod(shape)),), int32)
        for name, shape in shapes.items() for task in named
    }  # fmt: skip
    with appearing(out) as folder:
        kinds = {name: (shape, DTYPES[dtype]) for name, shape in shapes.items()}
        with (
            DeltaReader(files, told) as reader,
            FactorsFile(folder / UNIFIED, kinds) as unified,
            FactorsFile(folder / MASKS, words) as masks,
        ):
            means = [_write(output, reader, list(named), DTYPES[dtype], unified, masks) for output in outputs]
            unified.finish()
            masks.finish()
        scales = [scale_of([tensor[k] for tensor in means]) for k in range(len(named))]
        facts = {"format": FORMAT, "base": os.fspath(base), "tasks": list(named), "scales": scales}
        (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
    return load(out)


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
    plan = make_plan(replace(load_recipe(recipe), path="emr"))
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
                mask = masks.get_tensor(_mask_name(task, output.name))
                _restore(tensor, unified.get_tensor(output.name), mask, scale)
            weights.begin(output.name, *kinds[output.name])
            weights.write(tensor)
        weights.finish()
        for name, file in plan.files.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            data = file.text.encode() if isinstance(file, TextFile) else Path(file.path).read_bytes()
            (target / name).write_bytes(data)


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
                _restore(state[name], unified.get_tensor(name), masks.get_tensor(_mask_name(task, name)), scale)

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


def _paired(base: str, models: Mapping[str, str]) -> tuple[list[OutputTensor], list[InputFile]]:
    """Return the float tensors of a base with their namesakes in the models, and all files."""
    if not models:
        raise InvalidInput([Problem("emr", "there are no models", "name the fine-tunes")])
    # The plan of a merge pairs the tensors and finds whatever keeps them from being compared.
    recipe = load_recipe(
        {
            "merge_method": "task_arithmetic",
            "base_model": base,
            "models": [{"model": model} for model in models.values()],
            "parameters": {"weight": 1.0},
        }
    )
    plan = make_plan(replace(recipe, path="emr"))
    outputs = [output for output in plan.outputs if output.inputs.base is not None]
    return outputs, list({file.path: file for model in plan.models for file in model.files}.values())


def _write(
    output: OutputTensor, reader: DeltaReader, tasks: Sequence[str], dtype: DType, unified: FactorsFile,
    masks: FactorsFile,
) -> list[tuple[float, float]]:  # fmt: skip
    """Write the unified delta of one tensor and its masks; return, per task, the means that its scale is made of."""
    count = output.group.numel if output.group is not None else 0
    packed = torch.zeros(len(tasks), mask_words(count), dtype=torch.int32)
    unified.begin(output.name, tuple(output.shape), dtype)
    sums: list[Tensor] = []
    start = 0
    for base, *tensors in reader.chunks(output.inputs.every):
        deltas = [torch.empty(len(base)) for _ in tensors]
        for delta, tensor in zip(deltas, tensors, strict=True):
            kernels.weighted_sum(delta, [base, tensor], [-1.0, 1.0])
        whole, kept = unify(deltas)
        if not whole.isfinite().all():
            raise FastmergeError(f"{output.name}: a delta holds NaN or infinity. Repair the model")
        stored = whole.to(dtype.torch)
        unified.write(stored)
        table = torch.empty(-(-len(base) // GRID), 4 * len(tasks), dtype=torch.float64)
        vectors = [v for delta, mask in zip(deltas, kept, strict=True) for v in (delta, stored.float() * mask)]
        kernels.norm_partials(table, vectors, None, [keep_all()] * len(vectors))
        sums.append(table)
        for row, mask in zip(packed, kept, strict=True):
            _pack(row, mask, start)
        start += len(base)
    for task, row in zip(tasks, packed, strict=True):
        masks.begin(_mask_name(task, output.name), tuple(row.shape), int32)
        masks.write(row)
    if not count:
        return [(0.0, 0.0)] * len(tasks)
    totals = kernels.total(torch.cat(sums))[::2]
    return [(own / count, masked / count) for own, masked in zip(totals[::2], totals[1::2], strict=True)]


def _pack(words: Tensor, mask: Tensor, start: int) -> None:
    """Write the bits of elements from ``start`` on (a multiple of 32) into the words of the tensor."""
    bits = torch.zeros(mask_words(len(mask)) * 32, dtype=torch.int64)
    bits[: len(mask)] = mask
    values = (bits.view(-1, 32) << torch.arange(32)).sum(1)
    words[start // 32 : start // 32 + len(values)] = (values - (values >> 31 << 32)).to(torch.int32)


def _mask_name(task: str, name: str) -> str:
    return f"{task}/{name}"
