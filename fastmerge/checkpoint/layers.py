"""Finds the layers of a model from the names of its tensors and its config; no list of architectures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..steps.method import Layout

_NUMBERED = re.compile(r"(?:(.*?)\.)??(\d+)\.(.+)")
_STACK_NAMES = ("layers", "layer", "h", "blocks", "block")
LAYER_COUNT_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers")
"""Names that configs give the number of layers."""
_HEAD_KEYS = ("num_attention_heads", "n_head", "num_heads")
TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config", "decoder")
"""Names that configs of several models in one give the language model's."""

# Words in names (``vision_tower``, ``img_processor``) of what is not the language model.
_VISION = {"vision", "visual", "vit", "vpm", "image", "img", "video", "pixel", "clip", "siglip", "dino", "sam", "eva"}
_AUDIO = {"audio", "apm", "speech", "sound", "voice", "acoustic", "whisper", "wav", "conformer", "codec", "vocoder"}
_OTHERS = {"tower", "talker", "token2wav", "code2wav", "tts", "depth", "qformer", "resampler", "perceiver", "vqmodel"}
_ADAPTERS = {"projector", "projection", "connector", "merger", "aligner", "abstractor", "mlp1"}
# Layers that predict tokens further ahead.
_AHEAD = {"mtp", "nextn", "eagle", "medusa"}
_HALVES = {"decoder": ("num_decoder_layers", "decoder_layers"), "encoder": ("encoder_layers",)}
_TEXT = {"language", "text", "llm", "lm"}


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
        counts: number of layers by stack (``model.layers``).
        main:   the language model's stack, which slices cut; None for a model without layers.
        beyond: layers of the main stack behind those that the config counts, which predict further ahead (DeepSeek).
        holes:  numbers without a tensor, below the last one of the main stack.
    """

    counts: Mapping[str, int]
    main: str | None
    beyond: int = 0
    holes: tuple[int, ...] = ()

    @property
    def layers(self) -> int:
        """Layers of the main stack, without those beyond."""
        return self.counts[self.main] if self.main is not None else 0

    @property
    def halves(self) -> tuple[str, str] | None:
        """Encoder and decoder of a model that has both; None for others."""
        encoders = {stack for stack in self.counts if "encoder" in stack and not is_tower(stack)}
        pairs = ((stack, stack.replace("encoder", "decoder")) for stack in encoders)
        return next((pair for pair in pairs if pair[1] in self.counts), None)


def says_tied(config: Mapping[str, Any] | None) -> bool | None:
    """Return ``tie_word_embeddings`` of a config, or of the language model's in it; None where neither says."""
    config = config or {}
    levels = [level for level in (config, *map(config.get, TEXT_CONFIGS)) if isinstance(level, dict)]
    said = [value for level in levels if isinstance(value := level.get("tie_word_embeddings"), bool)]
    return any(said) if said else None


def find_stacks(names: Iterable[LayerName], config: Mapping[str, Any] | None = None) -> Stacks:
    """Return the stacks among the names. What is not called layers, h or block is a stack only if nothing else is.

    The main stack is the one that is no tower's and has as many layers as the config says; among several, the one that
    is called a text model's, then one that is no encoder's, then the one with most tensors.
    """
    indices: dict[str, set[int]] = {}
    tensors: dict[str, int] = {}
    for name in names:
        indices.setdefault(name.stack, set()).add(name.index)
        tensors[name.stack] = tensors.get(name.stack, 0) + 1
    # A number that is far from the others is none of a layer.
    counts = {stack: max(found) + 1 for stack, found in indices.items() if max(found) < 2 * len(found)}
    named = [stack for stack in counts if is_named(stack)]
    # Numbers of anything else are layers only where they count from 0.
    candidates = named or [stack for stack in counts if len(indices[stack]) == counts[stack]]
    stated = config_layers(config or {})
    layers = max(stated[1], 0) if stated else 0

    def likelihood(stack: str) -> tuple:
        enough, words = (counts[stack] == layers) + (counts[stack] >= layers), _words(stack)
        return not is_tower(stack), enough, bool(words & _TEXT), "encoder" not in words, tensors[stack]

    main = max(candidates, key=likelihood, default=None)
    kept = {stack: counts[stack] for stack in counts if stack in named or stack == main}
    if main is None:
        return Stacks(kept, None)
    holes = tuple(sorted(set(range(counts[main])) - indices[main]))
    own = stack_layers(config or {}, main)
    beyond = max(counts[main] - own[1], 0) if own and own[1] > 0 else 0
    return Stacks(kept | {main: counts[main] - beyond}, main, beyond, holes)


def is_named(stack: str) -> bool:
    """True for stacks that are called what layers are called."""
    return re.split(r"[._]", stack)[-1] in _STACK_NAMES


def config_layers(config: Mapping[str, Any]) -> tuple[tuple[str, ...], int] | None:
    """Return where a config, or the text config in it, states its number of layers (a path of keys), and the number."""
    for outer in TEXT_CONFIGS:
        inner = config.get(outer)
        found = config_layers(inner) if isinstance(inner, Mapping) else None
        if found:
            return (outer, *found[0]), found[1]
    own = _first_int(config, LAYER_COUNT_KEYS)
    return ((own[0],), own[1]) if own else None


def stack_layers(config: Mapping[str, Any], stack: str) -> tuple[tuple[str, ...], int] | None:
    """As ``config_layers``, for any stack: a tower, an encoder and a decoder may count their own layers."""
    words = _words(stack)
    if is_tower(stack):
        outer = "vision_config" if words & _VISION else "audio_config" if words & _AUDIO else ""
        found = _first_int(config.get(outer), (*LAYER_COUNT_KEYS, "depth", "encoder_layers"))
        return ((outer, found[0]), found[1]) if found else None
    half = next((part for part in _HALVES if part in words), "")
    found = _first_int(config, _HALVES.get(half, ()))
    return ((found[0],), found[1]) if found else config_layers(config)


def _first_int(level: Any, keys: Sequence[str]) -> tuple[str, int] | None:
    """Return the first key that has a whole number, and the number."""
    for key in keys if isinstance(level, Mapping) else ():
        if isinstance(level.get(key), int):
            return key, level[key]
    return None


def layouts(names: Iterable[str], config: Mapping[str, Any] | None = None) -> dict[str, Layout]:
    """Return the place of every tensor of a model, by name, from its names and its config."""
    split = {name: split_layer(name) for name in names}
    counts = find_stacks((parts for parts in split.values() if parts), config).counts
    known: dict[tuple, Layout] = {}
    found = {}
    for name, parts in split.items():
        stack = parts.stack if parts else ""
        layers = counts.get(stack, 0) if parts else 0
        layer = parts.index if parts and parts.index < layers else None
        key = (stack, layer)
        if key not in known:
            known[key] = Layout(layer, layers if layer is not None else 0, *_heads(config or {}, stack))
        found[name] = known[key]
    return found


def _heads(config: Mapping[str, Any], stack: str) -> tuple[int, int]:
    """Return the heads of queries, and of keys and values, from the config of a part or the outer one; 0: not known."""
    words = _words(stack)
    inner = ("vision_config",) if words & _VISION else ("audio_config",) if words & _AUDIO else TEXT_CONFIGS
    for level in (*_levels(config, inner), config):
        heads = next((level[key] for key in _HEAD_KEYS if isinstance(level.get(key), int)), 0)
        if heads:
            shared = level.get("num_key_value_heads")
            return heads, shared if isinstance(shared, int) else heads
    return 0, 0


def _levels(config: Mapping[str, Any], keys: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the configs of a part, the innermost first (``thinker_config.text_config``)."""
    for key in (*keys, "thinker_config"):
        inner = config.get(key)
        if isinstance(inner, Mapping):
            yield from _levels(inner, keys)
            if key in keys:
                yield inner


def is_tower(name: str) -> bool:
    """True for names in a part that is not the language model: vision or audio tower, speech decoder, layers ahead."""
    return bool(_words(name) & (_VISION | _AUDIO | _OTHERS | _AHEAD))


def belongs_before_layers(name: str) -> bool:
    """True for embeddings, towers and what connects these; False for the final norm, the head and whatever else."""
    words = _words(name)
    if words & _AHEAD:
        return False
    if words & (_VISION | _AUDIO | _OTHERS | _ADAPTERS):
        return True
    return any(("embed" in part and part != "embed_out") or part in ("wte", "wpe") for part in name.split("."))


def _words(name: str) -> set[str]:
    return set(re.split(r"[._]", name))
