"""Whether the config of the output and its tensors say the same sizes: a loader refuses what does not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoint.layers import TEXT_CONFIGS
from .findings import Findings
from .shapes import STATED, shapes_of
from .types import OutputTensor

# Parts of names that belong to what a language model looks and listens with: it has a config of its own.
_TOWERS = re.compile(r"vision|visual|image|audio|speech|tower|projector|merger|encoder\.")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def check_agreement(config: Mapping[str, Any], where: str, outputs: Sequence[OutputTensor], findings: Findings) -> None:
    """Report tensors of the output that have another shape than its config says, once per kind of tensor.

    Only of families that are known by heart (``shapes``); of models with several parts the language model. ``where``
    is the place of the config that the output's is made from.
    """
    inner = next((config[key] for key in TEXT_CONFIGS if isinstance(config.get(key), Mapping)), config)
    family = inner.get("model_type")
    shapes = shapes_of(family) if isinstance(family, str) else {}
    # Models that do not fit together have been reported: what comes of them is no news.
    if findings.problems or not shapes:
        return
    kinds: dict[str, list[OutputTensor]] = {}
    for output in outputs:
        if inner is not config and _TOWERS.search(output.name):
            continue
        name = "." + _NUMBER.sub("N", output.name)
        if kind := next((end for end in shapes if name.endswith("." + end)), None):
            kinds.setdefault(kind, []).append(output)
    for kind, found in kinds.items():
        expected = [_size(inner, size) for size in shapes[kind]]
        # Where some agree, layers are of different sizes on purpose; ``stacking`` checks what is put together.
        if any(_agrees(output.shape, expected) for output in found):
            continue
        said = [f"{size} {'?' if n is None else n}" for size, n in zip(shapes[kind], expected, strict=True)]
        what = f"says {', '.join(said)}, but {found[0].name} has the shape {list(found[0].shape)}"
        if len(found) > 1:
            what += f", and {len(found) - 1} more tensors disagree"
        findings.problem(where, what, "no loader takes that: repair the config, or take the weights that it belongs to")


def _agrees(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    return len(shape) == len(expected) and all(e in (None, n) for e, n in zip(expected, shape, strict=True))


def _size(config: Mapping[str, Any], text: str) -> int | None:
    """Return a sum of products of numbers and keys of a config; None where it does not say."""
    total = 0
    for product in text.split(" + "):
        sizes = [int(key) if key.isdigit() else _value(config, key) for key in product.split(" * ")]
        if None in sizes:
            return None
        total += math.prod(size for size in sizes if size is not None)
    return total


def _value(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    if value is None and key == "num_key_value_heads":
        return _value(config, "num_attention_heads")
    if value is None and key == "head_dim" and config.get("model_type") not in STATED:
        width, heads = _value(config, "hidden_size"), _value(config, "num_attention_heads")
        return width // heads if width and heads else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
