"""Where mergekit's methods do their arithmetic, in 0.1.5 and in 0.1.4, and what goes in and out there."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..calls import Uncovered
from ..patching import Patch
from .merging import METHODS, Call, Settings, merge


def install(patch: Patch, settings: Settings) -> None:
    """Replace the inner functions of the mergekit that is installed."""
    registry = importlib.import_module("mergekit.merge_methods.registry")
    if hasattr(registry, "registered_methods"):
        for method in registry.registered_methods():
            if method.spec.name in METHODS:
                _install_method(patch, method, settings)
    else:
        for place, (name, read) in _TASKS.items():
            module, task = place.split(":")
            owner = getattr(importlib.import_module(f"mergekit.merge_methods.{module}"), task)
            _install_task(patch, name, owner, read, settings)


# 0.1.5: objects with a specification; two of them take batches.


def _install_method(patch: Patch, method: Any, settings: Settings) -> None:
    name, batched = method.spec.name, method.supports_batching
    attribute = "implementation" if hasattr(method, "implementation") else "merge_group"

    def serve(inputs: Any, /, **parameters: Any) -> Tensor:
        if batched:
            return torch.stack([merge(call, settings) for call in _batch_calls(name, inputs, parameters)])
        return merge(_group_call(method.spec, inputs, parameters), settings)

    patch.replace(method, attribute, patch.serving(name, getattr(method, attribute), serve))


def _batch_calls(name: str, batch: Any, parameters: Mapping[str, Any]) -> list[Call]:
    """Return the calls of a batch: tensors [outputs, ...], and parameters that are tensors, [outputs] or per model."""
    calls = []
    for i in range(batch.tensors[0].shape[0]):
        values = {key: value[i].tolist() if isinstance(value, Tensor) else value for key, value in parameters.items()}
        tensors = [tensor[i] for tensor in batch.tensors]
        base = tensors.pop(batch.base_index) if name == "slerp" and batch.base_index is not None else None
        calls.append(Call(name, name, base, tensors, values))
    return calls


def _group_call(spec: Any, group: Any, parameters: Mapping[str, Any]) -> Call:
    ignored = spec.contract.base.value == "ignored"
    entries = group.entries if ignored else group.non_base
    if not entries:
        raise Uncovered("no model but the base")
    per_model = {parameter.name for parameter in spec.input_parameters}
    values = {
        key: [value[entry.id] for entry in entries] if key in per_model else value for key, value in parameters.items()
    }
    base = None if ignored or group.base is None else group.base.tensor
    return Call(spec.name, group.metadata.name or spec.name, base, [entry.tensor for entry in entries], values)


# 0.1.4: tasks of its graph, which hold the parameters and get tensors by model.


Read = Callable[[Any, Mapping[Any, Tensor]], Call]


def _install_task(patch: Patch, name: str | Callable[..., str], task: type, read: Read, settings: Settings) -> None:
    def serve(self: Any, tensors: dict[Any, Tensor], **others: Any) -> Tensor:
        return merge(read(self, tensors), settings)

    patch.replace(task, "execute", patch.serving(name, vars(task)["execute"], serve))


def _method_name(task: Any, *arguments: Any, **options: Any) -> str:
    return task.method.method_name


def _deltas(task: Any, tensors: Mapping[Any, Tensor]) -> Call:
    name, base = task.method.method_name, tensors[task.base_model]
    models = [model for model in tensors if model != task.base_model]
    if not models or any(tensors[model].shape != base.shape for model in models):
        raise Uncovered("no model but the base" if not models else "tensors of different shapes")
    if name not in METHODS:
        raise Uncovered("not known to fastmerge")
    own = [task.tensor_parameters[model] for model in models]
    values = {key: [float(parameters[key]) for parameters in own] for key in own[0]}
    densities = values.get("density", [])
    if name == "ties" and any(0 <= density * base.numel() < 1 for density in densities):
        raise Uncovered("a density that keeps nothing, which mergekit 0.1.4 refuses")
    if name.startswith("breadcrumbs"):
        gammas = values["gamma"]
        if any(d < 1 and not int(g * base.numel()) for d, g in zip(densities, gammas, strict=True)):
            raise Uncovered("no outliers to drop, where mergekit 0.1.4 drops everything")
    shared = {"normalize": task.normalize, "lambda": task.lambda_}
    if name != "task_arithmetic":
        shared["rescale"] = task.rescale_norm is not None
    return Call(name, task.weight_info.name, base, [_as(tensors[m], base) for m in models], values | shared)


def _linear(task: Any, tensors: Mapping[Any, Tensor]) -> Call:
    weights = [float(task.tensor_parameters[model]["weight"]) for model in tensors]
    values = {"weight": weights, "normalize": task.normalize}
    return Call("linear", task.weight_info.name, None, list(tensors.values()), values, old_linear=True)


def _slerp(task: Any, tensors: Mapping[Any, Tensor]) -> Call:
    base, (model,) = _base_and(task, tensors, 1)
    if base.dtype is torch.float16 or model.dtype != base.dtype:
        raise Uncovered("dtypes that mergekit 0.1.4 takes by NumPy")
    return Call("slerp", task.weight_info.name, base, [model], {"t": task.t})


def _nuslerp(task: Any, tensors: Mapping[Any, Tensor]) -> Call:
    models = [model for model in tensors if model != task.base_model]
    if len(models) != 2:
        raise Uncovered("not two models")
    values = {
        "weight": [float(task.tensor_parameters[model]["weight"]) for model in models],
        "nuslerp_row_wise": task.row_wise, "nuslerp_flatten": task.flatten,
    }  # fmt: skip
    base = tensors.get(task.base_model) if task.base_model is not None else None
    return Call("nuslerp", task.weight_info.name, base, [tensors[model] for model in models], values)


def _karcher(task: Any, tensors: Mapping[Any, Tensor]) -> Call:
    if len(tensors) < 2:
        raise Uncovered("one model")
    values = {"max_iter": task.max_iter, "tol": task.tol}
    return Call("karcher", task.weight_info.name, None, list(tensors.values()), values)


def _model_stock(task: Any, tensors: Mapping[Any, Tensor]) -> Call:
    base, models = _base_and(task, tensors, None)
    if len(models) < 2:
        raise Uncovered("fewer than two models")
    return Call("model_stock", task.weight_info.name, base, models, {"filter_wise": task.filter_wise})


def _base_and(task: Any, tensors: Mapping[Any, Tensor], count: int | None) -> tuple[Tensor, Sequence[Tensor]]:
    models = [tensor for model, tensor in tensors.items() if model != task.base_model]
    if task.base_model not in tensors or count not in (None, len(models)):
        raise Uncovered("another number of models")
    return tensors[task.base_model], models


def _as(tensor: Tensor, base: Tensor) -> Tensor:
    return tensor if tensor.dtype == base.dtype else tensor.to(base.dtype)


_TASKS: dict[str, tuple[str | Callable[..., str], Read]] = {
    "generalized_task_arithmetic:GTATask": (_method_name, _deltas),
    "linear:LinearMergeTask": ("linear", _linear),
    "slerp:SlerpTask": ("slerp", _slerp),
    "nuslerp:NuSlerpTask": ("nuslerp", _nuslerp),
    "karcher:KarcherTask": ("karcher", _karcher),
    "model_stock:ModelStockMergeTask": ("model_stock", _model_stock),
}
