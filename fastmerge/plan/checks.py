"""Checks between the inputs of a tensor, and between models; all findings are collected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..dtypes import DType
from ..recipe.types import ModelRef
from .equality import equal_values
from .findings import Findings
from .models import MERGED, OpenModel, has_token_rows
from .rows import Row
from .types import InputTensor


def check_models(models: Mapping[ModelRef, OpenModel], allow_mixed_types: bool, findings: Findings) -> None:
    """Check that the models are of one type."""
    if not models:
        return
    first = next(iter(models.values()))
    expected = (first.checkpoint.config or {}).get("model_type")
    for model in models.values():
        kind = (model.checkpoint.config or {}).get("model_type")
        if expected and kind and kind != expected and not allow_mixed_types:
            what = f"model_type is {kind!r}, but {first} is {expected!r}"
            remedy = "merge fine-tunes of one model, or allow mixed types if you know that they compute the same"
            findings.problem(f"{model.checkpoint.folder}/config.json", what, remedy)


def check_shapes(rows: Sequence[Row], findings: Findings) -> list[Row]:
    """Return the rows whose inputs have one shape; report the others, once per model."""
    good = []
    wrong: dict[tuple[int, bool], list[tuple[Row, InputTensor, OpenModel]]] = {}
    for row in rows:
        shape = row.inputs.every[0].shape
        if all(tensor.shape == shape for tensor in row.inputs.every):
            good.append(row)
            continue
        for tensor, model in zip(row.inputs.every, row.members.models.every, strict=True):
            if tensor.shape != shape:
                vocabulary = has_token_rows(tensor.name) and tensor.shape[1:] == shape[1:]
                wrong.setdefault((model.index, vocabulary), []).append((row, tensor, model))
    for (_, vocabulary), found in wrong.items():
        row, tensor, model = found[0]
        expected, reference = row.inputs.every[0].shape, row.members.models.every[0]
        where = f"{model.checkpoint.folder}: {', '.join(t.name for _, t, _ in found[:3])}"
        if vocabulary:
            what = f"the vocabulary has {tensor.shape[0]} rows, that of {reference} has {expected[0]}"
            remedy = "write tokenizer_source: base or union into the recipe, so that they are merged by token"
        else:
            what = f"shape {list(tensor.shape)}, but {list(expected)} in {reference}"
            if len(found) > 1:
                what += f", and {len(found) - 1} more tensors disagree"
            remedy = "merge models of one architecture and size"
        findings.problem(where, what, remedy)
    return good


def check_dtypes(rows: Sequence[Row], integers: str, findings: Findings) -> list[Row]:
    """Return the rows that can be merged or copied; report the others, once per model and dtype.

    ``integers`` is the recipe's.
    """
    wrong: dict[tuple[int, DType], list[tuple[InputTensor, OpenModel]]] = {}
    good = []
    for row in rows:
        refused = {(model.index, t.dtype): (t, model) for t, model in row.pairs if not _mergeable(t.dtype)}
        if not refused:
            good.append(row)
        for key, tensor_of_model in refused.items():
            wrong.setdefault(key, []).append(tensor_of_model)
    for (_, dtype), found in wrong.items():
        tensor, model = found[0]
        remedy = "convert the model to bfloat16 or float32 first"
        what = f"{len(found)} tensors are {dtype}, which is not merged"
        findings.problem(f"{model.checkpoint.folder}: {tensor.name}", what, remedy)
    return [row for row in good if _check_integers(row, integers, findings)]


def _mergeable(dtype: DType) -> bool:
    return dtype in MERGED or not (dtype.is_floating_point or dtype.is_complex)


def _check_integers(row: Row, integers: str, findings: Findings) -> bool:
    """Check that a tensor that can only be copied is the same in all inputs, unless the recipe says whose is taken."""
    if all(tensor.dtype in MERGED for tensor in row.inputs.every):
        return True
    dtypes = {tensor.dtype for tensor in row.inputs.every}
    if integers != "equal" and len(dtypes) == 1 and all(tensor.plain for tensor in row.inputs.every):
        return True
    if equal_values(row.inputs.every, row.members.models.every):
        return True
    tensor, model = next((t, m) for t, m in row.pairs if t.dtype not in MERGED)
    what = f"a tensor of {', '.join(sorted(map(str, dtypes)))} differs between the models"
    remedy = (
        "integer and bool tensors are copied, so they must be equal in all models; integers: last (or first) in the "
        "recipe takes those of that model"
    )
    findings.problem(f"{model.checkpoint.folder}: {tensor.name}", what, remedy)
    return False
