"""Random changes of values, JSON and bytes. ``rng`` is a ``random.Random``, or hypothesis's, which can shrink."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308, float("inf"), float("nan"),
    "", "a", "..", "../x", "/etc/passwd", "\0", "\ud800", "é", "{", "${x}", "1", [], [[]], [0], [-1], [2**62, 4], {},
    {"a": {}}, ["a", None], "x" * 5000, list(range(50)),
)  # fmt: skip

ODD_KEYS = (
    "",
    "a",
    "__metadata__",
    "weight",
    "..",
    "\0",
    "\ud800",
    "model.layers.0.x.weight",
    "_name_or_path",
    "dtype",
)


def change_value(rng: Random, value: Any) -> Any:
    """Return a value in the place of ``value``: odd, or near it."""
    kind = rng.randrange(4)
    if kind == 0 and isinstance(value, int) and not isinstance(value, bool):
        return value + rng.choice((-1, 1, 2, 7, 1 << 20, -value, value))
    if kind == 1 and isinstance(value, str) and value:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice(("", ".", "/", "\0", "*", "(", "x", "é", "\n")) + value[at + 1 :]
    if kind == 2 and isinstance(value, list) and value:
        return rng.choice((value[:-1], value + value, value[::-1], value * 20))
    return copy.deepcopy(rng.choice(ODD_VALUES))


def change_tree(rng: Random, tree: Any) -> Any:
    """Return a copy of nested lists and objects with one change somewhere in it."""
    tree = copy.deepcopy(tree)
    holder: Any = None
    at: Any = None
    node = tree
    while isinstance(node, (dict, list)) and node and rng.randrange(5):
        holder, at = node, rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = holder[at]
    if holder is None:
        return change_value(rng, tree) if not rng.randrange(8) else change_members(rng, tree)
    kind = rng.randrange(6)
    if kind == 0:
        del holder[at]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(ODD_KEYS)] = holder.pop(at)
    elif kind == 2:
        holder[at] = change_members(rng, node)
    elif kind == 3 and isinstance(holder, dict):
        holder[rng.choice(ODD_KEYS)] = copy.deepcopy(node)
    else:
        holder[at] = change_value(rng, node)
    return tree


def change_members(rng: Random, node: Any) -> Any:
    if isinstance(node, dict):
        return {**node, rng.choice(ODD_KEYS): copy.deepcopy(rng.choice(ODD_VALUES))}
    if isinstance(node, list):
        return [*node, copy.deepcopy(rng.choice(ODD_VALUES))]
    return change_value(rng, node)


def json_text(rng: Random, tree: Any) -> bytes:
    """Return ``tree`` as JSON, changed up to three times; sometimes text that is none."""
    for _ in range(rng.randrange(4)):
        tree = change_tree(rng, tree)
    text = json.dumps(tree).encode("utf-8", "surrogatepass")
    kind = rng.randrange(12)
    if kind == 0:
        return change_bytes(rng, text)
    if kind == 1 and text.startswith(b"{"):  # a key twice
        return text[:-1] + b"," + text[1:] if len(text) > 2 else text
    if kind == 2:
        return b"[" * rng.choice((10, 1000, 100_000)) + text
    return text


def change_bytes(rng: Random, data: bytes) -> bytes:
    """Return bytes with a few changed, cut, doubled or added."""
    data = bytearray(data)
    for _ in range(1 + rng.randrange(4)):
        kind = rng.randrange(6)
        at = rng.randrange(len(data) + 1)
        if kind == 0 and data:
            data[at % len(data)] = rng.randrange(256)
        elif kind == 1:
            del data[at : at + rng.choice((1, 2, 8, 64, 1 << 12))]
        elif kind == 2:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 2, 8))))
        elif kind == 3:
            del data[at:]
        elif kind == 4 and data:
            data[at:at] = data[at : at + 16]
        elif len(data) >= 8:
            at = min(at, len(data) - 8)
            data[at : at + 8] = rng.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)).to_bytes(8, "little")
    return bytes(data)
