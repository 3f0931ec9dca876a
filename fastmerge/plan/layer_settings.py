"""What a config says of single layers, written anew for layers that slices have put together in another order.

Lists with an entry per layer, patterns, lists of layer numbers, and numbers that count layers from either end follow
the layers. Periods hold only where every layer keeps its place in the period; where not, a note says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..checkpoint.layers import LAYER_COUNT_KEYS, is_tower

_NUMBERS = re.compile(
    r"(^|_)layers?(_enum)?$|layers?_?(id|idx|index|indices|indexes|num)s?$|(^|_)(idxs?|index(es)?|indices)$|_at$"
)
_COUNTS = re.compile(r"(num|n)_|" + "|".join(LAYER_COUNT_KEYS))
# Lists and settings that are never about layers, also where as many entries as layers are in them.
_NO_LAYERS = re.compile(r"token|feature|select|m?rope_(scaling|parameters|section)|label|architectures|quantization")
_PATTERNS = re.compile(r"types?$|pattern")
_PERIODS = re.compile(
    r"(?!.*time_step)\w*(layer|attn|attention|window|sparse|moe|expert|mamba|rope|cla|hybrid)\w*"
    r"(period|interval|step|freq|frequency|pattern|group_size|share_factor|every\w*)"
)
# Where lists say the same for every layer, they win over a period.
_STATED = {
    r"window|attention|attn": ("layer_types", "layers_block_type"),
    r"rope": ("no_rope_layers",),
    r"moe|sparse|expert": ("mlp_layer_types", "moe_layers"),
}
_FIRST = (
    "first_k_dense_replace", "first_k_dense_layers", "num_dense_layers", "n_dense_layers", "num_hash_layers",
    "max_window_layers", "moe_layer_start_index",
)  # fmt: skip
_LAST = ("num_kv_shared_layers",)
_MISSING = object()


@dataclass(frozen=True)
class Origin:
    """Where a layer of the output comes from: the config of its model that counts the layers, their number, its own."""

    config: Mapping[str, Any]
    layers: int
    index: int


@dataclass
class LayerSettings:
    """Rewrites the settings of a config level in place.

    Attributes:
        origins: of every layer of the output; their first one's model gave the config.
        layers:  that the config counted before.
        beyond:  layers behind those, which some lists have an entry for.
        tower:   the layers are a tower's, and what is called visual is meant.
        unsaid:  keys that no longer hold and cannot be rewritten, with their values.
    """

    origins: Sequence[Origin]
    layers: int
    beyond: int = 0
    tower: bool = False
    unsaid: dict[str, Any] = field(default_factory=dict)

    def rewrite(self, level: dict[str, Any], path: tuple[str, ...] = ()) -> None:
        """Rewrite what ``level``, at ``path`` in the config that counts the layers, says of single layers."""
        if self._is_as_before():
            return
        first = 1 if self._counts_from_one(level) else 0
        for key, value in list(level.items()):
            here = (*path, key)
            if _NO_LAYERS.search(key) or (is_tower(key) and not self.tower):
                continue
            if isinstance(value, Mapping) and _is_by_number(key, value):
                level[key] = self._by_number(here)
            elif isinstance(value, dict):
                if not _counts_layers(value):
                    self.rewrite(value, here)
            elif key == "attention_types":
                self.unsaid[".".join(here)] = value
            elif self._is_list_of_numbers(key, value, first):
                level[key] = self._numbers(here, value, first)
            elif isinstance(value, list | str):
                level[key] = self._entries(here, value)
            elif isinstance(value, int) and not isinstance(value, bool):
                level[key] = self._count(here, value, level)

    def _is_as_before(self) -> bool:
        config = self.origins[0].config
        places = all(o.index == i and (o.config is config or o.config == config) for i, o in enumerate(self.origins))
        return places and len(self.origins) == self.layers

    def _values(self, path: tuple[str, ...]) -> Iterator[tuple[Any, Origin]]:
        """Yield what the model of every layer says at ``path``."""
        for origin in self.origins:
            value: Any = origin.config
            for key in path:
                value = value.get(key, _MISSING) if isinstance(value, Mapping) else _MISSING
            yield value, origin

    def _entries(self, path: tuple[str, ...], value: Any) -> Any:
        """Return a list or text with an entry per layer, or with a shorter pattern that is repeated."""
        key, text = path[-1], isinstance(value, str)
        if text and _NUMBERS.search(key) and re.fullmatch(r"\d+(, *\d+)*", value):
            return self._enumeration(path)
        pattern = bool(_PATTERNS.search(key)) and all(isinstance(entry, str) for entry in value)
        if text and "pattern" not in key:
            return value
        whole = self.layers > 1 and len(value) in (self.layers, self.layers + self.beyond)
        if not whole and not (pattern and 1 < len(value) < self.layers):
            return value
        found = []
        for theirs, origin in self._values(path):
            if theirs is _MISSING and origin.layers == self.layers:
                theirs = value
            if not isinstance(theirs, type(value)) or not theirs or (whole and len(theirs) < origin.layers):
                self.unsaid[".".join(path)] = value
                return value
            found.append(theirs[origin.index % len(theirs)])
        if not whole and all(entry == value[i % len(value)] for i, entry in enumerate(found)):
            return value
        return "".join(found) + value[self.layers :] if text else found + value[self.layers :]

    def _is_list_of_numbers(self, key: str, value: Any, first: int) -> bool:
        if not _NUMBERS.search(key) or _COUNTS.match(key):
            return False
        if value is None:
            return any(isinstance(origin.config.get(key), list) for origin in self.origins)
        if not isinstance(value, list) or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
            return False
        if len({*value}) < len(value) or not all(first - self.layers <= v < self.layers + first for v in value):
            return False
        # As many numbers as layers are an entry per layer, unless they name all layers.
        every = list(range(first, self.layers + first))
        return len(value) != self.layers or (value == every and not key.startswith("no_"))

    def _numbers(self, path: tuple[str, ...], value: Any, first: int) -> Any:
        found = []
        for i, (theirs, origin) in enumerate(self._values(path)):
            listed = theirs if isinstance(theirs, list) else []
            if any(not isinstance(v, int) for v in listed):
                self.unsaid[".".join(path)] = value
                return value
            if origin.index in {v - first if v >= first else v % origin.layers for v in listed}:
                found.append(i + first)
        return found

    def _enumeration(self, path: tuple[str, ...]) -> str:
        found = []
        for i, (theirs, origin) in enumerate(self._values(path)):
            numbers = re.findall(r"\d+", theirs) if isinstance(theirs, str) else []
            if str(origin.index) in numbers:
                found.append(str(i))
        return ",".join(found)

    def _by_number(self, path: tuple[str, ...]) -> dict[str, Any]:
        pairs = ((i, theirs, origin) for i, (theirs, origin) in enumerate(self._values(path)))
        return {
            str(i): theirs[str(origin.index)]
            for i, theirs, origin in pairs
            if isinstance(theirs, Mapping) and str(origin.index) in theirs
        }

    def _counts_from_one(self, level: Mapping[str, Any]) -> bool:
        """True where lists of layer numbers hold the number of layers, and none holds 0 (Kimi Linear)."""
        numbers = {
            v
            for key, value in level.items()
            if isinstance(value, list) and _NUMBERS.search(key) and not _COUNTS.match(key)
            for v in value
            if isinstance(v, int)
        }
        return self.layers in numbers and 0 not in numbers and max(numbers) == self.layers

    def _count(self, path: tuple[str, ...], value: int, level: Mapping[str, Any]) -> int:
        """Return a number that is about layers: so many at an end, or a period."""
        key = path[-1]
        if key in _FIRST or key == "moe_layer_end_index" or key in _LAST:
            return self._run(path, value)
        if _PERIODS.fullmatch(key) and value > 1:
            stated = any(re.search(kind, key) and any(k in level for k in keys) for kind, keys in _STATED.items())
            kept = all((i - origin.index) % value == 0 for i, origin in enumerate(self.origins))
            same = all(theirs == value for theirs, _ in self._values(path))
            if not stated and not (kept and same):
                self.unsaid[".".join(path)] = value
        return value

    def _run(self, path: tuple[str, ...], value: int) -> int:
        """Return how many layers at an end of the output are of a kind; note where they do not lie there together."""
        key, count = path[-1], len(self.origins)
        plus = 1 if key == "moe_layer_end_index" else 0
        if value < 0:
            return value
        kinds = []
        for theirs, origin in self._values(path):
            own = theirs + plus if isinstance(theirs, int) else value + plus
            kinds.append(origin.index >= origin.layers - own if key in _LAST else origin.index < own)
        if all(kinds):
            # More than there are layers means all of them.
            return max(value, count - plus) if value + plus >= self.layers else count - plus
        ordered = kinds[::-1] if key in _LAST else kinds
        run = ordered.index(False)
        if any(ordered[run:]) or run < plus:
            self.unsaid[".".join(path)] = value
            return value
        return run - plus


def _is_by_number(key: str, value: Mapping[str, Any]) -> bool:
    """True for a mapping from layer numbers, as text."""
    about_layers = "layer" in key or key == "pruned_heads"
    return bool(value) and about_layers and all(isinstance(k, str) and k.isdigit() for k in value)


def _counts_layers(value: Mapping[str, Any]) -> bool:
    """True for the config of another part, which counts layers of its own."""
    return any(isinstance(value.get(name), int) for name in (*LAYER_COUNT_KEYS, "depth"))
