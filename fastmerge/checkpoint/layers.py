"""Finds the layers of a model from the names of its tensors; no list of architectures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..methods import Layout

_NUMBERED = re.compile(r"(?:(.*?)\.)??(\d+)\.(.+)")
_STACK_NAMES = ("layers", "layer", "h", "blocks", "block")
LAYER_COUNT_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""Names that configs give the number of layers."""
_HEAD_KEYS = ("num_attention_heads", "n_head", "num_heads")
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True)
class LayerName:
    """A tensor's name taken apart: ``model.layers`` . ``3`` . ``mlp.up_proj.weight``."""

    stack: str
    index: int
    rest: str


def split_layer(name: str) -> LayerName | None:
    """Take a name apart at its first numeric component; None where there is none."""
    match = _NUMBERED.fullmatch(name)
    return LayerName(match[1] or "", int(match[2]), match[3]) if match else None


@dataclass(frozen=True)
class Stacks:
    """The layer stacks of a model.

    Attributes:
        counts: number of layers by stack (``model.layers``), for every stack whose layers are numbered without a gap.
        main:   the stack with the most tensors, which slices cut; None for a model without layers.
    """

    counts: Mapping[str, int]
    main: str | None

    @property
    def layers(self) -> int:
        """Layers of the main stack."""
        return self.counts[self.main] if self.main is not None else 0


def find_stacks(names: Iterable[LayerName]) -> Stacks:
    """Return the stacks among the names. What is not called layers, h or block is a stack only if nothing else is."""
    indices: dict[str, set[int]] = {}
    tensors: dict[str, int] = {}
    for name in names:
        indices.setdefault(name.stack, set()).add(name.index)
        tensors[name.stack] = tensors.get(name.stack, 0) + 1
    counts = {stack: len(found) for stack, found in indices.items() if max(found) == len(found) - 1}
    named = [stack for stack in counts if stack.rpartition(".")[2] in _STACK_NAMES]
    main = max(named or counts, key=lambda stack: tensors[stack], default=None)
    return Stacks({stack: counts[stack] for stack in counts if stack in named or stack == main}, main)


def config_layers(config: Mapping[str, Any]) -> tuple[tuple[str, ...], int] | None:
    """Return where a config, or the text config in it, states its number of layers (a path of keys), and the number."""
    for key in LAYER_COUNT_KEYS:
        if isinstance(config.get(key), int):
            return (key,), config[key]
    for outer in _TEXT_CONFIGS:
        inner = config.get(outer)
        found = config_layers(inner) if isinstance(inner, dict) else None
        if found:
            return (outer, *found[0]), found[1]
    return None


def layouts(names: Iterable[str], config: Mapping[str, Any] | None = None) -> dict[str, Layout]:
    """Return the place of every tensor of a model, by name, from its names and its config."""
    split = {name: split_layer(name) for name in names}
    counts = find_stacks(parts for parts in split.values() if parts).counts
    text, vision = _heads(config or {}, _TEXT_CONFIGS), _heads(config or {}, ("vision_config",))
    known: dict[tuple, Layout] = {}
    found = {}
    for name, parts in split.items():
        layer = parts.index if parts and parts.stack in counts else None
        heads = vision if parts and "vis" in parts.stack else text
        key = (layer, parts and parts.stack, heads)
        if key not in known:
            known[key] = Layout(layer, counts[parts.stack] if parts and layer is not None else 0, *heads)
        found[name] = known[key]
    return found


def _heads(config: Mapping[str, Any], inner: Sequence[str]) -> tuple[int, int]:
    """Return the heads of queries, and of keys and values, from the config of a part or the outer one; 0: not known."""
    level = next((config[key] for key in inner if isinstance(config.get(key), Mapping)), config)
    heads = next((level[key] for key in _HEAD_KEYS if isinstance(level.get(key), int)), 0)
    shared = level.get("num_key_value_heads")
    return heads, shared if isinstance(shared, int) else heads


def belongs_before_layers(name: str) -> bool:
    """True for embeddings; False for the final norm, the head and whatever else lies outside the layers."""
    parts = name.split(".")
    return any(("embed" in part and part != "embed_out") or part in ("wte", "wpe") for part in parts)
