"""Parts that the spectral methods share: which tensors are matrices, the apply on whole matrices, parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import kernels
from ..apply import Apply
from ..kernels import GRID
from ..kernels.spectral import subspace_boost
from ..source import Chunk
from ._base import Group, Method, Parameter

MATRICES = Parameter(
    "matrices", str, "attn_mlp", choices=("attn_mlp", "all"),
    doc="what is treated as a matrix: attention and MLP projections in numbered layers, or every matrix",
)  # fmt: skip
# Not "null": YAML reads that key as None.
NULL_SPACE = Parameter(
    "null_space", str, "keep", choices=("keep", "reference"),
    doc="directions that a delta lacks stay zero, or are filled with arbitrary ones, as in the reference codes",
)  # fmt: skip
# beta 0.2 is that of the study on language models (arXiv 2511.21437); the paper on vision models tuned over 0 .. 0.02.
BOOST_PARAMETERS = (
    Parameter(
        "beta", float, 0.2, minimum=0.0, maximum=1.0,
        doc="share of the sum of singular values, from the largest on, that is left as it is: a larger one boosts less",
    ),
    MATRICES,
    NULL_SPACE,
)  # fmt: skip

# Names of the projections in checkpoints of transformers, timm, OpenCLIP and the original releases.
PROJECTIONS = {
    "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "gate_proj", "up_proj", "down_proj",
    "gate_up_proj", "fc1", "fc2", "w1", "w2", "w3", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "wq",
    "wk", "wv", "wo", "wqkv", "Wqkv", "c_attn", "c_proj", "c_fc", "fc_in", "fc_out", "query_key_value", "dense",
    "dense_h_to_4h", "dense_4h_to_h", "query", "key", "value", "q", "k", "v", "o", "wi", "wi_0", "wi_1", "qkv",
    "proj", "in_proj_weight",
}  # fmt: skip

# Elements of a delta that are formed at once: what that takes beside the delta does not grow with the tensor.
BLOCK = 16 * GRID


def is_spectral(group: Group) -> bool:
    """True for what a spectral method treats as a matrix: two dimensions, or three for stacked experts."""
    parts = group.name.split(".")
    if not group.numel or not (len(group.shape) == 2 or (len(group.shape) == 3 and "experts" in parts)):
        return False
    last = parts[-2] if parts[-1] == "weight" and len(parts) > 1 else parts[-1]
    # Heads, poolers and patch embeddings may share these names; they are in no numbered layer.
    return group["matrices"] == "all" or (last in PROJECTIONS and any(part.isdigit() for part in parts))


class SpectralMethod(Method):
    """A method that takes matrices whole, and other tensors part by part."""

    base = "required"

    def scratch_bytes(self, group: Group) -> int | None:
        return scratch_bytes(group, deltas=1) if is_spectral(group) else None


def scratch_bytes(group: Group, deltas: int) -> int:
    """Return a bound of what ``SpectralMerge`` takes with so many deltas at once.

    From measurements (glibc, MKL, one thread), rounded up: a spectral map that needs its last resort, the decomposition
    in float64, takes up to 9.5 float32 matrices and 6.5 Gram matrices; to orthogonalize takes 4.5 and 3 more.
    """
    m, n = sorted(group.shape[-2:], reverse=True)
    route = 10 * m * n + 7 * n * n + (5 * m * n + 3 * n * n if deltas > 1 else 0)
    block = min(group.numel, BLOCK)
    return 4 * (deltas * group.numel + (deltas + group.models) * block + route)


def boosted(group: Group, step: Apply) -> Apply:
    """Return the sparse merge ``step`` with its delta boosted, or ``step`` itself where there is no matrix."""
    if not is_spectral(group):
        return step
    beta, null = group["beta"], group["null_space"]
    return SpectralMerge(group, [step], lambda matrices: subspace_boost(matrices[0], beta, null=null)[0])


@dataclass(frozen=True)
class SpectralMerge(Apply):
    """``base + scale * change(merged deltas)``, matrix by matrix; whole tensors only.

    Attributes:
        group:  of the tensor.
        steps:  one sparse merge of all models, or one for each, of this model alone. Their deltas, without the base,
                are float32: one that was stored in less has other small singular values.
        change: makes one float32 matrix [m, n] of those of the ``steps``.
        scale:  multiplies it.
    """

    group: Group
    steps: Sequence[Apply]
    change: Callable[[list[Tensor]], Tensor]
    scale: float = 1.0

    def __call__(self, out: Tensor, chunk: Chunk) -> None:
        assert chunk.base is not None, "a method that applies a spectral merge requires a base"
        if out.numel() != self.group.numel:
            raise ValueError(f"{self.group.name}: a spectral merge needs all {self.group.numel} elements at once")
        models = [chunk.tensors] if len(self.steps) == 1 else [(tensor,) for tensor in chunk.tensors]
        deltas = [merged_delta(step, chunk.base, part) for step, part in zip(self.steps, models, strict=True)]
        if not all(bool(delta.isfinite().all()) for delta in deltas):
            raise ValueError(
                f"{self.group.name}: a delta holds NaN or infinity, and has no singular values. Repair the model"
            )
        stacks = [delta.view(-1, *self.group.shape[-2:]) for delta in deltas]
        for matrices in zip(*stacks, strict=True):
            # The first delta's memory takes the result.
            matrices[0].copy_(self.change(list(matrices)))
        kernels.weighted_sum(out.view(-1), [chunk.base.view(-1), deltas[0]], [1.0, self.scale])


def merged_delta(step: Apply, base: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Return what ``step`` adds to ``base``, exactly, float32 and flat.

    ``step`` runs over deltas and a base of zeros, in blocks: keep rules and roundings are those of the sparse merge.
    """
    merged = torch.zeros(base.numel(), dtype=torch.float32, device=base.device)
    start, flat = base.view(-1), [tensor.view(-1) for tensor in tensors]
    for offset in range(0, len(merged), BLOCK):
        block = slice(offset, offset + BLOCK)
        deltas = [torch.empty_like(merged[block]) for _ in flat]
        for delta, tensor in zip(deltas, flat, strict=True):
            kernels.weighted_sum(delta, [tensor[block], start[block]], [1.0, -1.0])
        step(merged[block], Chunk(merged[block], tuple(deltas), offset))
    return merged
