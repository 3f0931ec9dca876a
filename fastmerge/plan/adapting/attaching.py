"""What each change of an adapter becomes for a tensor of its base, by names and shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ...checkpoint import Change, PeftAdapter
from ...checkpoint.types import TensorEntry
from ...dtypes import bfloat16, float16, float32, float64
from ..findings import Findings
from ..types import Adapter, InputTensor
from .experts import attach_experts
from .names import HEAD, own_names
from .shapes import fitting_shape, rotation_size

__all__ = ["attach"]

# Models whose projections are Conv1D modules: their weights are stored as [in, out].
_CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D_MODULES = ("c_attn", "c_proj", "c_fc", "q_attn")
# Kinds that PEFT has for such modules, too.
_TURNED = ("lora", "adalora", "vera", "ia3", "vector")

_FLOATS = (float64, float32, bfloat16, float16)


def attach(
    index: int, tensors: dict[str, InputTensor], adapter: PeftAdapter, config: Mapping[str, Any] | None, found: Findings
) -> None:
    """Change ``tensors`` of the model ``index`` as ``adapter`` does; what does not fit is added to ``found``."""
    path = adapter.file.path
    changes = _without_tied_rows(adapter.changes, tensors)
    added = adapter.replaced.keys() - tensors.keys() if HEAD in adapter.replaced else set()
    sure = [name for name, change in changes.items() if not change.optional]
    own = own_names([name for name in (*sure, *adapter.replaced) if name not in added], tensors, path, found)
    wrong: list[str] = []
    for name, entry in adapter.replaced.items():
        target = name if name in added else own.get(name)
        if target is None:
            continue
        if target in tensors and tensors[target].shape != entry.shape:
            wrong.append(f"{target} {list(entry.shape)} for {list(tensors[target].shape)}")
        else:
            tensors[target] = InputTensor(index, target, *entry)

    def stored(name: str, entry: TensorEntry) -> InputTensor:
        if entry.dtype not in _FLOATS:
            found.problem(
                f"{path}: {name}", f"it is stored as {entry.dtype}", "save the adapter in float32 or bfloat16"
            )
        return InputTensor(index, name, *entry)

    for name, change in changes.items():
        target = own.get(name)
        if change.optional:
            target = _bias_beside(own.get(_weight_beside(name)), tensors)
        if target is not None:
            tensor = tensors[target]
            turned = change.embedding or _is_conv1d(target, config)
            if turned and change.kind not in _TURNED:
                what = f"{change.kind} of a transposed weight is not offered"
                found.problem(f"{path}: {name}", what, "merge it with PEFT first")
            elif why := _attach_one(tensors, tensor, name, change, turned, stored):
                wrong.append(f"{target} {why}")
    attach_experts(adapter.experts, tensors, config, path, stored, found)
    if wrong:
        listed = "; ".join(sorted(wrong)[:3]) + ("; ..." if len(wrong) > 3 else "")
        what = f"{len(wrong)} of its tensors have other shapes than the model's: {listed}"
        found.problem(path, what, "name the base that the adapter was trained on")


def _attach_one(
    tensors: dict[str, InputTensor],
    tensor: InputTensor,
    name: str,
    change: Change,
    turned: bool,
    stored: Callable[[str, TensorEntry], InputTensor],
) -> str | None:
    """Give ``tensor`` its adapter; return why it cannot have it."""
    turned = turned and len(tensor.shape) == 2
    shape = tensor.shape[::-1] if turned else tensor.shape
    fits = fitting_shape(change, shape)
    if fits != shape:
        return f"{list(fits) if fits else 'with parts that do not fit each other'} for {list(tensor.shape)}"
    parts = tuple(stored(f"{name}:{i}", entry) for i, entry in enumerate(change.parts))
    adapter = Adapter(change.kind, parts, change.scale, turned, _detail(change, shape, turned))
    tensors[tensor.name] = replace(tensor, adapters=(adapter,))
    return None


def _detail(change: Change, shape: tuple[int, ...], turned: bool) -> tuple[float, ...]:
    """Return the numbers that the arithmetic of a change needs for a tensor that is [out, in] of this shape."""
    match change.kind:
        case "ia3":
            # Along which dimension of the stored tensor the vector lies.
            rows = len(shape) == 2 and change.parts[0].shape[0] == shape[0]
            return (0,) if rows != turned else (1,)
        case "vera":
            return (shape[1],)
        case "oft":
            return (*change.detail, rotation_size(change.parts[0].shape[1]))
    return change.detail


def _without_tied_rows(changes: Mapping[str, Change], tensors: Mapping[str, InputTensor]) -> dict[str, Change]:
    """Leave out the rows of a head that is tied to the embedding: PEFT stores the embedding's once more for it."""
    twice = {
        name
        for name, change in changes.items()
        if change.kind == "rows" and name.endswith(HEAD) and not any(other.endswith(HEAD) for other in tensors)
        and any(other.kind == "rows" and other.detail == change.detail and n != name for n, other in changes.items())
    }  # fmt: skip
    return {name: change for name, change in changes.items() if name not in twice}


def _weight_beside(bias: str) -> str:
    return bias.removesuffix("bias") + "weight"


def _bias_beside(weight: str | None, tensors: Mapping[str, InputTensor]) -> str | None:
    bias = (weight or "").removesuffix("weight") + "bias"
    return bias if bias in tensors else None


def _is_conv1d(name: str, config: Mapping[str, Any] | None) -> bool:
    return (config or {}).get("model_type") in _CONV1D and name.split(".")[-2] in _CONV1D_MODULES
