"""Attaches an adapter to the tensors of its base: by name, or under the prefix by which the names differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..checkpoint.lora import LoraAdapter, LowRank
from ..checkpoint.types import TensorEntry
from ..dtypes import bfloat16, float16, float32, float64
from .findings import Findings
from .types import Adapter, InputTensor

# Models whose projections are Conv1D modules: their weights are stored as [in, out].
_CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D_MODULES = ("c_attn", "c_proj", "c_fc", "q_attn")

_FLOATS = (float64, float32, bfloat16, float16)
_HEAD = "lm_head.weight"


def attach(
    index: int, tensors: dict[str, InputTensor], adapter: LoraAdapter, config: Mapping[str, Any] | None, found: Findings
) -> None:
    """Change ``tensors`` of the model ``index`` as ``adapter`` does; what does not fit is added to ``found``."""
    path = adapter.file.path
    added = adapter.replaced.keys() - tensors.keys() if _HEAD in adapter.replaced else set()
    own = _own_names([name for name in (*adapter.terms, *adapter.replaced) if name not in added], tensors, path, found)
    wrong: list[str] = []
    for name, entry in adapter.replaced.items():
        target = name if name in added else own.get(name)
        if target is None:
            continue
        if target in tensors and tensors[target].shape != entry.shape:
            wrong.append(f"{target} {list(entry.shape)} for {list(tensors[target].shape)}")
        else:
            tensors[target] = InputTensor(index, target, *entry)
    for name, term in adapter.terms.items():
        if name not in own:
            continue
        tensor = tensors[own[name]]
        turned = term.embedding or _is_conv1d(tensor.name, config)
        shape = (term.up.shape[0], term.down.shape[1])
        if tensor.shape != (shape[::-1] if turned else shape):
            wrong.append(f"{tensor.name} {list(shape)} for {list(tensor.shape)}")
        elif turned and term.magnitude is not None:
            found.problem(f"{path}: {name}", "DoRA of a transposed weight is not offered", "merge it with PEFT first")
        else:
            tensors[tensor.name] = replace(tensor, adapters=(_term(index, name, term, turned, path, found),))
    if wrong:
        listed = "; ".join(sorted(wrong)[:3]) + ("; ..." if len(wrong) > 3 else "")
        what = f"{len(wrong)} of its tensors have other shapes than the model's: {listed}"
        found.problem(path, what, "name the base that the adapter was trained on")


def _own_names(names: Sequence[str], tensors: Mapping[str, InputTensor], path: str, found: Findings) -> dict[str, str]:
    """Return the model's names for an adapter's; a problem says for which it has none."""
    missing = [name for name in names if name not in tensors]
    if not missing:
        return {name: name for name in names}
    prefixes = [pair for pair in _prefixes(missing[0], tensors) if all(_under(pair, n, tensors) for n in names)]
    if len(prefixes) == 1:
        theirs, ours = (prefix or "no prefix" for prefix in prefixes[0])
        found.note(f"{path}: its names have {theirs} where the model's have {ours}: folded in there")
        return {name: _under(prefixes[0], name, tensors) or name for name in names}
    head = next((name for name in missing if name.endswith(_HEAD)), None)
    there = {name: name for name in names if name in tensors}
    if head is not None and len(missing) == 1:
        what = f"the adapter changes {head}, which the model does not have: it ties its head to the embedding"
        found.problem(path, what, "give the model a head of its own first, a copy of the embedding")
        return there
    listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    what = f"{len(missing)} of the {len(names)} tensors that the adapter changes are not in the model: {listed}"
    if near := _most_alike(missing[0], tensors):
        what += f"; the model has {near}"
    if prefixes:
        what += f"; they fit below each of {', '.join(ours or 'no prefix' for _, ours in prefixes)}"
    found.problem(path, what, "name the base that the adapter was trained on")
    return there


def _prefixes(name: str, tensors: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs of prefixes, the adapter's and the model's, by which ``name`` differs from a tensor's name."""
    pairs: dict[tuple[str, str], None] = {}
    for other in tensors:
        same = _common_end(name, other)
        pair = name[: len(name) - len(same)], other[: len(other) - len(same)]
        numbered = any(part.isdigit() for prefix in pair for part in prefix.split("."))
        if not numbered and (same.count(".") >= 2 or same == name):
            pairs[pair] = None
    return list(pairs)


def _common_end(one: str, other: str) -> str:
    """Return the longest end, in whole parts, that two names share."""
    parts: list[str] = []
    for a, b in zip(reversed(one.split(".")), reversed(other.split(".")), strict=False):
        if a != b:
            break
        parts.append(a)
    return ".".join(reversed(parts))


def _under(prefixes: tuple[str, str], name: str, tensors: Mapping[str, InputTensor]) -> str | None:
    theirs, ours = prefixes
    moved = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
    return moved if moved in tensors else name if name in tensors else None


def _most_alike(name: str, tensors: Iterable[str]) -> str | None:
    alike = max(tensors, key=lambda other: len(_common_end(name, other)), default=None)
    return alike if alike and _common_end(name, alike).count(".") else None


def _is_conv1d(name: str, config: Mapping[str, Any] | None) -> bool:
    return (config or {}).get("model_type") in _CONV1D and name.split(".")[-2] in _CONV1D_MODULES


def _term(index: int, name: str, term: LowRank, turned: bool, path: str, found: Findings) -> Adapter:
    def stored(side: str, entry: TensorEntry) -> InputTensor:
        if entry.dtype not in _FLOATS:
            found.problem(f"{path}: {name}", f"{side} is {entry.dtype}", "save the adapter in float32 or bfloat16")
        return InputTensor(index, f"{name}:{side}", *entry)

    up, down = stored("lora_B", term.up), stored("lora_A", term.down)
    if turned:
        up, down = down, up
    magnitude = None if term.magnitude is None else stored("lora_magnitude_vector", term.magnitude)
    return Adapter(up, down, term.scale, turned, magnitude)
