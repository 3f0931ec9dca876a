"""Whether the config of the output and its tensors say the same sizes: a loader refuses what does not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoint.layers import TEXT_CONFIGS
from .findings import Findings
from .types import OutputTensor

# Families whose tensors all follow from these keys: dense decoders that are shaped as Llama is. Others have more sizes.
_FAMILIES = {
    "cohere", "gemma", "gemma2", "gemma3_text", "granite", "helium", "llama", "mistral", "olmo", "olmo2", "qwen2",
    "qwen3", "seed_oss", "smollm3", "stablelm",
}  # fmt: skip

_SHAPES = {
    "embed_tokens.weight": ("vocab_size", "hidden_size"),
    "lm_head.weight": ("vocab_size", "hidden_size"),
    "q_proj.weight": ("num_attention_heads * head_dim", "hidden_size"),
    "k_proj.weight": ("num_key_value_heads * head_dim", "hidden_size"),
    "v_proj.weight": ("num_key_value_heads * head_dim", "hidden_size"),
    "o_proj.weight": ("hidden_size", "num_attention_heads * head_dim"),
    "gate_proj.weight": ("intermediate_size", "hidden_size"),
    "up_proj.weight": ("intermediate_size", "hidden_size"),
    "down_proj.weight": ("hidden_size", "intermediate_size"),
    "input_layernorm.weight": ("hidden_size",),
    "model.norm.weight": ("hidden_size",),
}


def check_agreement(config: Mapping[str, Any], where: str, outputs: Sequence[OutputTensor], findings: Findings) -> None:
    """Report tensors of the output that have another shape than its config says, once per kind of tensor.

    Only of families that are known by heart; ``where`` is the place of the config that the output's is made from.
    """
    inner = next((config[key] for key in TEXT_CONFIGS if isinstance(config.get(key), Mapping)), config)
    # Models that do not fit together have been reported: what comes of them is no news.
    if findings.problems or inner is not config or config.get("model_type") not in _FAMILIES:
        return
    kinds: dict[str, list[OutputTensor]] = {}
    for output in outputs:
        if kind := next((suffix for suffix in _SHAPES if output.name.endswith(suffix)), None):
            kinds.setdefault(kind, []).append(output)
    for kind, found in kinds.items():
        expected = [_size(config, size) for size in _SHAPES[kind]]
        # Where some agree, layers are of different sizes on purpose; ``stacking`` checks what is put together.
        if any(_agrees(output.shape, expected) for output in found):
            continue
        said = [f"{size} {'?' if n is None else n}" for size, n in zip(_SHAPES[kind], expected, strict=True)]
        what = f"says {', '.join(said)}, but {found[0].name} has the shape {list(found[0].shape)}"
        if len(found) > 1:
            what += f", and {len(found) - 1} more tensors disagree"
        findings.problem(where, what, "no loader takes that: repair the config, or take the weights that it belongs to")


def _agrees(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    return len(shape) == len(expected) and all(e in (None, n) for e, n in zip(expected, shape, strict=True))


def _size(config: Mapping[str, Any], text: str) -> int | None:
    """Return the product of keys of a config; None where it does not say."""
    sizes = [_value(config, key) for key in text.split(" * ")]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def _value(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    if value is None and key == "num_key_value_heads":
        return _value(config, "num_attention_heads")
    if value is None and key == "head_dim":
        width, heads = _value(config, "hidden_size"), _value(config, "num_attention_heads")
        return width // heads if width and heads else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
