"""``config.json`` of the output: the donor's, with what the merge changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..checkpoint.layers import LAYER_COUNT_KEYS, TEXT_CONFIGS, is_tower, stack_layers
from ..checkpoint.quantized import CONFIG_KEYS
from ..checkpoint.quantized import levels as quantized_levels
from ..dtypes import DType, float32
from .layer_settings import LayerSettings, Origin
from .models import is_vocabulary
from .rows import Rows, Stacked
from .stacking import misplaced_layers
from .types import OutputTensor


def output_config(
    config: Mapping[str, Any], found: Rows, outputs: Sequence[OutputTensor], truncated: bool = False
) -> dict[str, Any]:
    """Return the donor's ``config`` with the output's dtype, number of layers and tie of the head.

    ``truncated``: the vocabulary was cut, so that its size follows the embeddings.
    """
    result = plain_config(config)
    levels = [level for level in (result, *(result.get(key) for key in TEXT_CONFIGS)) if isinstance(level, dict)]
    _set_dtype(result, levels, outputs)
    if found.tied is not None:
        for level in [level for level in levels if "tie_word_embeddings" in level] or levels[:1]:
            level["tie_word_embeddings"] = found.tied
    _set_layers(result, found)
    sizes = {output.shape[0] for output in outputs if truncated and is_vocabulary(output.name)}
    for level in [level for level in levels if "vocab_size" in level]:
        level["vocab_size"] = min(sizes, default=level["vocab_size"])
    return result


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a config without what says that the weights are quantized: those of an output never are."""
    result = copy.deepcopy(dict(config))
    # transformers writes here where the model was loaded from.
    result.pop("_name_or_path", None)
    for level in quantized_levels(result):
        for key in CONFIG_KEYS:
            level.pop(key, None)
    return result


def _set_dtype(config: dict[str, Any], levels: Sequence[dict[str, Any]], outputs: Sequence[OutputTensor]) -> None:
    """Write the output's dtype; into the configs of towers, too, where all tensors have it."""
    main = _main_dtype(outputs)
    if {output.dtype for output in outputs if output.dtype.is_floating_point} == {main}:
        levels = list(_every_level(config))
    keys = [(level, key) for level in levels for key in ("dtype", "torch_dtype") if key in level]
    for level, key in keys or [(config, "torch_dtype")]:
        level[key] = str(main)


def _every_level(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield config
    for value in config.values():
        if isinstance(value, dict):
            yield from _every_level(value)


def _main_dtype(outputs: Sequence[OutputTensor]) -> DType:
    """Return the float dtype that holds most bytes of the output."""
    sizes: dict[DType, int] = {}
    for output in outputs:
        if output.dtype.is_floating_point:
            sizes[output.dtype] = sizes.get(output.dtype, 0) + output.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype], default=float32)


def _set_layers(config: dict[str, Any], found: Rows) -> None:
    """Write the new number of layers, and what the config says of single ones."""
    for stacked in found.stacked:
        donor = stacked.slices[0][0]
        place = stack_layers(config, stacked.stack)
        keys, before = place if place else ((), donor.stacks.layers)
        origins = [
            Origin(_level(model.checkpoint.config or {}, keys[:-1]), model.stacks.layers, start + i)
            for model, start, length in stacked.slices
            for i in range(length)
        ]
        level = _level(config, keys[:-1])
        before_level = copy.deepcopy(level)
        settings = LayerSettings(origins, before, donor.stacks.beyond, is_tower(stacked.stack))
        settings.rewrite(level)
        rewritten = level != before_level
        for outer in (level, config):
            for key in LAYER_COUNT_KEYS if keys and keys[-1] in LAYER_COUNT_KEYS else keys[-1:]:
                if outer.get(key) == before and (outer is level or not is_tower(stacked.stack)):
                    outer[key] = len(origins)
        _report(found, stacked, settings, rewritten)


def _report(found: Rows, stacked: Stacked, settings: LayerSettings, rewritten: bool) -> None:
    """Say what the config cannot say of the layers in their new order: a problem where their tensors show it."""
    donor = stacked.slices[0][0]
    misplaced = next(misplaced_layers(stacked.slices), None)
    said = ", ".join(f"{key} ({value!r:.60})" for key, value in settings.unsaid.items())
    what = f"the config describes the layers of {donor} by {said}, which cannot describe them in their new order"
    if misplaced is not None and said:
        what += f": layer {misplaced} has other tensors than layer {misplaced} of {donor}"
        found.findings.problem(f"{donor.checkpoint.folder}/config.json", what, "keep each kind of layer in its places")
    elif said:
        found.findings.note(f"{what}: check that the output's config says what its layers are")
    elif misplaced is not None and not rewritten and donor.checkpoint.config is not None:
        found.findings.note(
            f"layer {misplaced} of the output has other tensors than layer {misplaced} of {donor}, and nothing in the "
            "config says which layers have which: check that loaders can tell"
        )


def _level(config: Mapping[str, Any], path: Sequence[str]) -> Any:
    """Return the part of a config at ``path``; an empty one where there is none."""
    level: Any = config
    for key in path:
        level = level.get(key, {}) if isinstance(level, Mapping) else {}
    return level
