"""Keep rules of every kind, for the tests of the sparse merge on GPU backends."""

from __future__ import annotations

import torch
from kernel_cases import same_bits
from torch import Tensor

from fastmerge import kernels
from fastmerge.kernels import Boundary, Keep

# Shapes of matrices and the columns of a part: rows shorter and longer than a block of random numbers, a vector and a
# tile, at any place in them.
COLUMNS = (
    ((7, 50), (3, 40)),
    ((700, 5), (1, 3)),
    ((3, 4096), (1024, 1536)),
    ((40, 24), (8, 16)),
    ((4, 1030), (1, 1030)),
    ((65, 9), (0, 9)),
)


def _moved(boundary: Boundary, offset: int) -> Boundary:
    split = boundary.break_index < kernels.ALL_EQUAL
    return Boundary(boundary.threshold, boundary.break_index + offset) if split else boundary


def keep_rules(kinds: str, base: Tensor, tensors: list[Tensor], offset: int) -> list[Keep]:
    """One rule per letter: all, top, band, random, ``s`` random whose low half matters often, drop all, masked."""
    numel = base.numel()
    rules = []
    for k, (kind, tensor) in enumerate(zip(kinds, tensors, strict=True)):
        (found,) = kernels.select_boundaries(
            [tensor], base, [[int(0.6 * numel), int(0.1 * numel)]], backend="reference"
        )
        inside, outside = (_moved(boundary, offset) for boundary in found)
        key = kernels.tensor_key(7, "layer.weight")
        rules.append(
            {
                "a": kernels.keep_all(),
                "t": kernels.keep_top(inside),
                "b": kernels.keep_band(inside, outside),
                "r": kernels.keep_random(key, k, kernels.drop_threshold(0.3)),
                "s": kernels.keep_random(key, k, 0x8000),
                "d": kernels.keep_random(key, k, 2**32),
                "m": _mask(offset + numel, k) if kind == "m" else None,
            }[kind]
        )
    return rules


def _mask(numel: int, seed: int) -> Keep:
    """A mask of random bits."""
    words = kernels.mask_words(numel)
    generator = torch.Generator().manual_seed(seed)
    return kernels.keep_masked(torch.randint(-(2**31), 2**31, (words,), generator=generator).to(torch.int32))


def check_columns(shape, columns, base, tensors, run, device="cpu", far: int = 2**33 + 16384, vote="weighted") -> None:
    """Assert that ``run`` (an operation's keyword arguments) merges columns of a matrix as part of the whole matrix.

    Rules: random ones, and one that asks for no index. The matrix begins at a far index. The part is merged whole, and
    then in two pieces.
    """
    key, count = kernels.tensor_key(7, "layer.weight"), len(tensors)
    rules = [kernels.keep_random(key, k, (kernels.drop_threshold(0.3), 0x8000)[k % 2]) for k in range(count)]
    rules[-1] = kernels.keep_top(Boundary(0x38000000, kernels.ALL_EQUAL))
    how = {"factors": [0.9 - 0.7 * k for k in range(count)], "vote": vote, "scale": 0.7}
    whole = torch.full_like(base, torch.nan)
    kernels.sparse_merge(whole, base, tensors, keeps=rules, offset=far, **how, backend="reference")
    first, last = columns
    expected = whole.view(shape)[:, first:last].flatten()
    parts = [tensor.view(shape)[:, first:last].flatten().to(device) for tensor in (base, *tensors)]
    rules = [
        kernels.keep_on_rows(k, far + first, last - first, shape[1]) if k.rule == kernels.keep.RULE_RANDOM else k
        for k in rules
    ]
    cut = 3 * expected.numel() // 7
    for pieces in ((slice(None),), (slice(0, cut), slice(cut, None))):
        out = torch.full_like(parts[0], torch.nan)
        for piece in pieces:
            run(
                out[piece], parts[0][piece], [part[piece] for part in parts[1:]], keeps=rules,
                offset=piece.start or 0, **how,
            )  # fmt: skip
        assert same_bits(out.cpu(), expected), pieces
