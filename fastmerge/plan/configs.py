"""Compares the configs of the models: weights of one shape may still mean other things."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..checkpoint.layers import LAYER_COUNT_KEYS, config_layers
from .findings import Findings
from .models import OpenModel

_HEADS = (
    "num_attention_heads", "n_head", "num_heads", "num_key_value_heads", "n_head_kv", "num_kv_heads",
    "multi_query_group_num", "head_dim", "d_kv", "kv_channels",
)  # fmt: skip

# Says nothing about what the weights mean: how a model was saved, trained or is asked for text.
_INDIFFERENT = re.compile(
    r"_name_or_path|transformers_version|torch_dtype|dtype|architectures|auto_map|_commit_hash|model_type|use_cache"
    r"|(bos|pad|sep|unk|mask|cls|decoder_start)_token_id|vocab_size|tie_word_embeddings|initializer\w*|\w*dropout\w*"
    r"|\w*_pdrop|id2label|label2id|num_labels|problem_type|finetuning_task|task_specific_params|output_\w+|return_dict\w*"
    r"|torchscript|use_bfloat16|gradient_checkpointing|_?attn_implementation\w*|pretraining_tp|router_\w+|unsloth_\w+"
    r"|\w*aux_loss\w*|max_length|min_length|temperature|top_[kp]|do_sample|num_beams\w*|\w*_penalty|\w*ngram\w*"
    r"|chunk_size_feed_forward|tokenizer_class|prefix|quantization_config|compression_config|is_decoder|license"
)
_MOST_KEYS = 6


def compare_configs(models: Sequence[OpenModel], sliced: bool, allow_mixed_types: bool, findings: Findings) -> None:
    """Compare every config with that of the first model, which the output takes.

    Another number of heads is a problem: the weights of one shape are cut in another way. Other differences are notes.

    Args:
        sliced:            the recipe has layer ranges, so that lists with an entry per layer may differ.
        allow_mixed_types: heads are a note, too.
    """
    if not models:
        return
    first = models[0]
    expected = _flat(first.checkpoint.config or {})
    for model in models[1:]:
        if model.checkpoint.folder == first.checkpoint.folder:
            continue
        config = _flat(model.checkpoint.config or {})
        differing = list(_differences(expected, config, sliced))
        heads = [key for key in differing if _is_heads(key)]
        where = f"{model.checkpoint.folder}/config.json"
        if heads and not allow_mixed_types:
            what = f"differs from that of {first} in {_text(heads, config, expected)}"
            remedy = "the same weights are cut into other heads: merge fine-tunes of one model"
            findings.problem(where, what, remedy)
            differing = [key for key in differing if key not in heads]
        if differing:
            text = _text(differing, config, expected)
            findings.note(f"{where} differs from that of {first} in {text}; the output has the config of {first}")


def _differences(expected: Mapping[str, Any], config: Mapping[str, Any], sliced: bool) -> Iterator[str]:
    for key in sorted(expected.keys() & config.keys()):
        here, there = config[key], expected[key]
        unsaid = None in (here, there) and key != "sliding_window"
        by_layer = sliced and isinstance(here, list) and isinstance(there, list)
        if here != there and not unsaid and not by_layer and not _INDIFFERENT.fullmatch(key.rpartition(".")[2]):
            yield key


def _is_heads(key: str) -> bool:
    return key.rpartition(".")[2] in _HEADS


def _text(keys: Sequence[str], config: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    parts = [
        f"{key.removeprefix('rope.')} ({config[key]!r:.60}, there {expected[key]!r:.60})" for key in keys[:_MOST_KEYS]
    ]
    if len(keys) > _MOST_KEYS:
        parts.append(f"{len(keys) - _MOST_KEYS} more keys")
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a config by path (``vision_config.hidden_act``), those of the language model without one.

    Spellings of several versions of transformers become one.
    """
    place = config_layers(config)
    flat = dict(_settings(config, tuple(place[0][:-1]) if place else ()))
    for key in LAYER_COUNT_KEYS:
        flat.pop(key, None)
    if flat.get("use_sliding_window") is False:
        flat["sliding_window"] = None
    flat.setdefault("sliding_window", None)
    scaling = [key for key in flat if key.startswith("rope.")]
    # Newer models have one set of rope settings for every kind of attention.
    if scaling and all(key.count(".") == 1 for key in scaling):
        flat.setdefault("rope.rope_type", "default")
    return flat


def _settings(level: Mapping[str, Any], text: tuple[str, ...], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield path and value of every setting; those of the language model's config last, because they win."""
    for key, value in sorted(level.items(), key=lambda item: item[0] == (text[0] if text else None)):
        if key in ("rope_scaling", "rope_parameters"):
            yield from _rope(value if isinstance(value, Mapping) else {}, path)
        elif key in ("rope_theta", "rotary_emb_base"):
            yield f"{path}rope.rope_theta", value
        elif isinstance(value, Mapping):
            inner = bool(text) and key == text[0]
            yield from _settings(value, text[1:] if inner else (), path if inner else f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _rope(settings: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from ((f"{path}rope.{key}.{inner}", setting) for inner, setting in value.items())
        else:
            yield f"{path}rope.{'rope_type' if key == 'type' else key}", value
