"""GGUF files with changed keys, types, counts, shapes and places; written without the package."""

from __future__ import annotations

import struct
from random import Random
from typing import Any

from .mutations import ODD_KEYS, ODD_VALUES, change_bytes

_KINDS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
COUNTS = (0, 1, 2, 3, 7, 2**16, 2**21, 2**31, 2**32 - 1, 2**40, 2**60, 2**63, 2**64 - 1)

# (key, kind, value); "A" is the architecture.
KEYS: tuple[tuple[str, int, Any], ...] = (
    ("general.alignment", 4, 32), ("A.block_count", 4, 1), ("A.embedding_length", 4, 32),
    ("A.feed_forward_length", 4, 32), ("A.attention.head_count", 4, 2), ("A.attention.head_count_kv", 4, 1),
    ("A.attention.layer_norm_rms_epsilon", 6, 1e-5), ("A.rope.freq_base", 6, 1e4), ("A.context_length", 4, 64),
    ("A.rope.dimension_count", 4, 16), ("A.attention.key_length", 4, 16), ("A.expert_count", 4, 2),
    ("A.expert_used_count", 4, 1), ("A.rope.scaling.type", 8, "linear"), ("A.rope.scaling.factor", 6, 2.0),
    ("A.attn_logit_softcapping", 6, 50.0), ("split.count", 2, 1), ("split.no", 2, 0), ("split.tensors.count", 5, 8),
    ("tokenizer.ggml.bos_token_id", 4, 1), ("tokenizer.ggml.tokens", 9, (8, ["a", "b", "c"])),
    ("tokenizer.ggml.token_type", 9, (5, [1, 1, 1])), ("tokenizer.ggml.scores", 9, (6, [0.0] * 3)),
)  # fmt: skip
OPTIONAL = ("split", "expert", "scaling", "softcapping", "tokenizer", "key_length", "dimension_count", "alignment")
ARCHITECTURES = ("llama", "llama", "qwen2", "qwen3moe", "qwen2moe", "gemma", "gemma2", "gemma3", "x", "")
# Name, shape as GGUF has it (fastest first), kind.
TENSORS: tuple[tuple[str, tuple[int, ...], int], ...] = (
    ("token_embd.weight", (32, 4), 0), ("blk.0.attn_q.weight", (32, 32), 8), ("blk.0.attn_k.weight", (32, 16), 1),
    ("blk.0.attn_v.weight", (32, 16), 30), ("blk.0.attn_output.weight", (32, 32), 2),
    ("blk.0.attn_norm.weight", (32,), 0), ("blk.0.ffn_up.weight", (32, 32), 8), ("output_norm.weight", (32,), 0),
    ("blk.0.attn_q.bias", (32,), 0), ("blk.0.ffn_gate_exps.weight", (32, 32, 2), 8), ("rope_freqs.weight", (8,), 0),
    ("blk.0.ffn_gate_inp_shexp.weight", (32,), 0), ("output.weight", (32, 4), 2),
)  # fmt: skip
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 8: (32, 34), 14: (256, 210), 30: (1, 2)}


def gguf_bytes(rng: Random) -> bytes:
    """Return a GGUF file that is right in most places."""
    name = rng.choice(ARCHITECTURES)
    pairs = [_text("general.architecture") + _value(rng, 8, name)]
    pairs += [_text(key.replace("A", name, 1)) + _value(rng, kind, value) for key, kind, value in _keys(rng)]
    if not rng.randrange(12):
        pairs.append(rng.choice(pairs))
    infos, size = [], 0
    for title, shape, kind in _tensors(rng):
        elements, nbytes = BLOCKS.get(kind, (1, 4))
        total = nbytes
        for extent in shape:
            total *= extent
        offset = size if rng.randrange(90) else rng.choice((*COUNTS, size + 1, 32))
        infos.append(
            _text(title) + struct.pack("<I", _odd(rng, len(shape), (0, 4, 5, 2**31)))
            + b"".join(struct.pack("<Q", extent % 2**64) for extent in shape) + struct.pack("<IQ", kind, offset % 2**64)
        )  # fmt: skip
        size += -(-total // elements // 32) * 32 if total < 1 << 16 else 0
    version = _odd(rng, 3, (1, 2, 4, 3 << 24))
    counts = struct.pack("<QQ", _odd(rng, len(infos), COUNTS), _odd(rng, len(pairs), COUNTS))
    head = b"GGUF" + struct.pack("<I", version) + counts + b"".join(pairs) + b"".join(infos)
    values = rng.choice((b"\0", b"<", b"\xff")) * max(0, size + rng.choice((0, 0, 0, 64, -40)))
    data = head + bytes(-len(head) % 32) + values
    return data if rng.randrange(4) else change_bytes(rng, data[: 1 << 13])


def _keys(rng: Random) -> list[tuple[str, int, Any]]:
    left_out = [part for part in OPTIONAL if rng.randrange(3)]
    found = [key for key in KEYS if not any(part in key[0] for part in left_out)]
    for i, (key, kind, value) in enumerate(found):
        change = rng.randrange(250)
        if change == 0:
            found[i] = key, kind, rng.choice(ODD_VALUES)
        elif change == 1:
            found[i] = key, rng.choice((*_KINDS, 8, 9, 13, 99)), value
        elif change == 2:
            found[i] = key, 4, rng.choice(COUNTS)
        elif change == 3:
            found[i] = rng.choice((*ODD_KEYS, found[0][0])), kind, value
    return found if rng.randrange(12) else found[: rng.randrange(len(found))]


def _tensors(rng: Random) -> list[tuple[str, tuple[int, ...], int]]:
    found = [tensor for tensor in TENSORS[:8] if rng.randrange(60)]
    found += [tensor for tensor in TENSORS[8:] if not rng.randrange(6)]
    for i, (name, shape, kind) in enumerate(found):
        change = rng.randrange(90)
        if change == 0:
            extents = rng.choice(((), (0,), (1,) * 5, (32, 2**40), (32, 2**62), (2**63, 2), (33, 32), (32, 1, 1, 1)))
            found[i] = name, extents, kind
        elif change == 1:
            found[i] = name, shape, rng.choice((*BLOCKS, 4, 24, 28, 39, 40, 200))
        elif change == 2:
            names = (*ODD_KEYS, "blk.99999999999.attn_q.weight", "blk.0.attn_q.x", "blk.٣.attn_q.weight", found[0][0])
            found[i] = rng.choice(names), shape, kind
    return found


def _odd(rng: Random, right: int, others: tuple[int, ...]) -> int:
    return right if rng.randrange(150) else rng.choice(others)


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _value(rng: Random, kind: int, value: Any) -> bytes:
    """Return a value with its kind; what does not fit the kind is written as something near."""
    if kind == 9:
        item, values = value if isinstance(value, tuple) else (4, [value])
        length, item = _odd(rng, len(values), COUNTS), _odd(rng, item, (9, 8, 0, 12, 99))
        return struct.pack("<IIQ", kind, item, length) + b"".join(_plain(item, one) for one in values)
    return struct.pack("<I", kind) + _plain(kind, value)


def _plain(kind: int, value: Any) -> bytes:
    if kind in _KINDS:
        try:
            return struct.pack(f"<{_KINDS[kind]}", value)
        except (struct.error, OverflowError):
            return struct.pack("<q", 7)[: struct.calcsize(_KINDS[kind])]
    return _text(value if isinstance(value, str) else repr(value))
