"""Writing EMR artifacts, in one reading of all inputs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import kernels
from ..arguments import several
from ..dtypes import DType, bfloat16, float16, float32, int32
from ..engine.folders import appearing
from ..engine.reading import DeltaReader
from ..errors import FastmergeError, InvalidInput, Problem
from ..extraction.factors_file import FactorsFile
from ..kernels import GRID, keep_all, mask_words
from ..methods.emr import mask_of, scale_of, unify
from ..plan import make_plan
from ..plan.types import OutputTensor
from ..progress import ProgressLike, of_bytes, shown
from ..recipe import load as load_recipe
from .experts import FACTS, FORMAT, MASKS, UNIFIED, Experts, load, mask_name

if TYPE_CHECKING:
    from ..checkpoint import InputFile

DTYPES = {kind.name: kind for kind in (float32, bfloat16, float16)}


def save(
    base: str | os.PathLike[str],
    models: Mapping[str, str | os.PathLike[str]] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    progress: ProgressLike = None,
) -> Experts:
    """Write the artifact of fine-tunes of one base into the folder ``out``, and return it. Reads every input once.

    Args:
        base:     folder or hub id, as recipes name models.
        models:   fine-tunes by the names of their tasks; of a sequence, "0", "1" and so on.
        out:      folder; it appears when it is complete.
        dtype:    of the unified delta: float32, bfloat16 or float16. Scales are those of what is stored.
        progress: as in ``fastmerge.merge``; of the input bytes that were read.
    Raises:
        InvalidInput:   models do not match the base or cannot be opened; all problems are named.
        FastmergeError: a file is corrupt, a delta is not finite, or ``out`` exists.
        ValueError:     ``dtype`` is none of the three.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    named = models if isinstance(models, Mapping) else {str(i): model for i, model in enumerate(several(models))}
    outputs, files = _paired(os.fspath(base), {task: os.fspath(model) for task, model in named.items()})
    total = sum(tensor.nbytes for output in outputs for tensor in output.inputs.every)
    shapes = {output.name: tuple(output.shape) for output in outputs}
    words = {
        mask_name(task, name): ((mask_words(math.prod(shape)),), int32)
        for name, shape in shapes.items() for task in named
    }  # fmt: skip
    with shown(progress, "reading") as call, appearing(out) as folder:
        kinds = {name: (shape, DTYPES[dtype]) for name, shape in shapes.items()}
        with (
            DeltaReader(files, of_bytes(call, total)) as reader,
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
    plan = make_plan(replace(recipe, path="emr", text=""))
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
        whole, sign = unify(deltas)
        if not whole.isfinite().all():
            raise FastmergeError(f"{output.name}: a delta holds NaN or infinity. Repair the model")
        kept = [mask_of(delta, sign) for delta in deltas]
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
        masks.begin(mask_name(task, output.name), tuple(row.shape), int32)
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
