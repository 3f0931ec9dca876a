"""Parts that the spectral methods share: which tensors are matrices, the apply on whole matrices, parameters."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from .. import kernels
from ..kernels import keep_all
from ..steps.apply import Apply, DeltaMerge, MatrixPart, PartedMerge, SparseMerge
from ..steps.method import Group, Method, Parameter
from ..steps.source import Chunk
from ..steps.stacks import Stack, alike, batches_on, change_together, matrices_at_once
from ._deltas import BLOCK, merged_delta, noise_of, noise_sums, rounding_noise
from ._sparse import LAMBDA

if TYPE_CHECKING:
    from torch import Tensor

    from ..kernels.spectral import Info

MATRICES = Parameter(
    "matrices", str, "attn_mlp", choices=("attn_mlp", "all"),
    doc="what is treated as a matrix: attention and MLP projections in numbered layers, or every matrix",
)  # fmt: skip
# Not "null": YAML reads that key as None.
NULL_SPACE = Parameter(
    "null_space", str, "keep", choices=("keep", "reference"),
    doc="directions that a delta lacks stay zero, or are filled with arbitrary ones, as in the reference codes",
)  # fmt: skip
# Of the methods whose papers have no weights.
SPECTRAL_PARAMETERS = (
    Parameter("weight", float, 1.0, per_model=True, doc="coefficient of the model's delta"),
    LAMBDA,
    MATRICES,
    NULL_SPACE,
)

# Names of the projections in checkpoints of transformers, timm, OpenCLIP and the original releases.
PROJECTIONS = {
    "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "gate_proj", "up_proj", "down_proj",
    "gate_up_proj", "fc1", "fc2", "w1", "w2", "w3", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "wq",
    "wk", "wv", "wo", "wqkv", "Wqkv", "W_pack", "c_attn", "c_proj", "c_fc", "fc_in", "fc_out", "query_key_value",
    "dense", "dense_h_to_4h", "dense_4h_to_h", "query", "key", "value", "q", "k", "v", "o", "wi", "wi_0", "wi_1",
    "qkv", "proj", "in_proj_weight",
}  # fmt: skip

# Makes one float32 matrix [m, n] of those of the steps, and says what was done. The number is the standard deviation
# of the rounding noise in the elements of their sum. A ``Stack`` makes it of many matrices at once, too.
Change: TypeAlias = "Callable[[list[Tensor], float], tuple[Tensor, list[Info]]]"


def module_of(name: str) -> str:
    """Return the last part of a tensor's name before ``weight``."""
    parts = name.split(".")
    return parts[-2] if parts[-1] == "weight" and len(parts) > 1 else parts[-1]


def is_spectral(group: Group, matrices: str) -> bool:
    """True for what a spectral method treats as a matrix: two dimensions, or three for stacked experts."""
    parts = group.name.split(".")
    if not group.numel or not (len(group.shape) == 2 or (len(group.shape) == 3 and "experts" in parts)):
        return False
    # Heads, poolers and patch embeddings may share these names; they are in no numbered layer.
    return matrices == "all" or (module_of(group.name) in PROJECTIONS and any(part.isdigit() for part in parts))


class SpectralMethod(Method):
    """A method that takes matrices whole, as ``SpectralMerge``, and gives other tensors the weighted mean.

    Attributes:
        stacked: True when the change sees one delta per model; False: their weighted sum.
    """

    base = "required"
    parameters: ClassVar[tuple[Parameter, ...]] = SPECTRAL_PARAMETERS
    stacked = True

    def merge(self, group: Group) -> Apply:
        # tsv_c has one model and no weight.
        weights, keeps = group.values.get("weight", (1.0,) * group.models), [keep_all()] * group.models
        if not self.is_changed(group):
            return SparseMerge(weights, keeps, divide="weights", scale=group["lambda"])
        if self.stacked:
            steps = [SparseMerge([weight], [keep_all()]) for weight in weights]
        else:
            steps = [SparseMerge(weights, keeps)]
        return SpectralMerge(group, steps, self.change(group), group["lambda"])

    @abstractmethod
    def change(self, group: Group) -> Change:
        """Return what is made of the matrices of a tensor."""

    def stacks(self, group: Group) -> bool:
        return self.is_changed(group) and isinstance(self.change(group), Stack)

    def is_changed(self, group: Group) -> bool:
        """True where the tensor is a matrix, or several, with at least one direction for every model."""
        least = group.models if self.stacked else 1
        return is_spectral(group, group["matrices"]) and min(group.shape[-2:]) >= least

    def scratch_bytes(self, group: Group) -> int | None:
        return scratch_bytes(group, group.models if self.stacked else 1) if self.is_changed(group) else None

    def apart(self, group: Group) -> range:
        """Stacked experts."""
        return range(len(group.shape) - 2)

    def cost(self, group: Group) -> float:
        return decomposed(group, group.models if self.stacked else 1) if self.is_changed(group) else super().cost(group)


def on_moved(change: Callable[[list[Tensor]], tuple[Tensor, list[Info]]]) -> Change:
    """Return a change that sees the deltas that are not all zeros; without any the result is zero."""

    def changed(matrices: list[Tensor], _: float) -> tuple[Tensor, list[Info]]:
        import torch

        moved = [matrix for matrix in matrices if bool(matrix.any())]
        return change(moved) if moved else (torch.zeros_like(matrices[0]), [])

    return changed


def decomposed(group: Group, deltas: int = 1) -> float:
    """Return about the operations of decompositions of so many deltas, as ``Method.cost``."""
    return float(deltas * group.numel * min(group.shape[-2:], default=1))


def scratch_bytes(group: Group, deltas: int) -> int:
    """Return a bound of what ``SpectralMerge`` takes with so many deltas at once.

    From measurements (glibc, MKL, one thread), rounded up: a spectral map that needs its last resort, the decomposition
    in float64, takes up to 9.5 float32 matrices and 6.5 Gram matrices; to orthogonalize takes 4.5 and 3 more.
    """
    m, n = sorted(group.shape[-2:], reverse=True)
    route = 10 * m * n + 7 * n * n + (5 * m * n + 3 * n * n if deltas > 1 else 0)
    return delta_bytes(group, deltas) + 4 * route


def delta_bytes(group: Group, deltas: int) -> int:
    """Return what so many float32 deltas take, with the blocks in which they are formed."""
    return 4 * (deltas * group.numel + (deltas + group.models) * min(group.numel, BLOCK))


@dataclass(frozen=True)
class SpectralMerge(PartedMerge):
    """``base + scale * change(merged deltas)``, matrix by matrix; whole tensors only.

    Attributes:
        group:  of the tensor.
        steps:  one merge of all models, or one for each, of this model alone. Their deltas, without the base, are
                float32: one that was stored in less has other small singular values.
        change: see ``Change``.
        scale:  multiplies its result.
        singles: True where the change also sees, last, the delta of every model by itself.
        infos:  what was done with each matrix, once it was applied.
    """

    group: Group
    steps: Sequence[DeltaMerge]
    change: Change
    scale: float = 1.0
    singles: bool = False
    infos: list[Info] = field(default_factory=list, compare=False)

    @property
    def at_once(self) -> bool:
        return True

    @property
    def inner(self) -> DeltaMerge:  # type: ignore[override]
        return self.steps[0]

    @property
    def gains(self) -> Sequence[float]:
        return [gain for step in self.steps for gain in step.gains]

    @property
    def remarks(self) -> Sequence[str]:
        shares = [info.noise for info in self.infos if info.noise is not None]
        if not shares or sum(shares) <= len(shares) / 2:
            return ()
        return ("most of the singular values that were raised are rounding noise of the inputs",)

    def __call__(self, out: Tensor, chunk: Chunk) -> None:
        self.apply_all([self], [out], [chunk])

    @classmethod
    def apply_all(cls, steps: Sequence[SpectralMerge], outs: Sequence[Tensor], chunks: Sequence[Chunk]) -> None:
        """Merge tensors; matrices of one shape, which change in one way, as a batch where that pays."""
        keys = [
            (step.change, out.device, step.group.shape[-2:])
            if isinstance(step.change, Stack) and batches_on(out.device)
            else None
            for step, out in zip(steps, outs, strict=True)
        ]
        counts = [math.prod(step.group.shape[:-2]) for step in steps]
        for batch in alike(keys, counts, [matrices_at_once(step.group.shape) for step in steps]):
            deltas = [steps[i]._deltas(outs[i], chunks[i]) for i in batch]
            first = steps[batch[0]]
            if isinstance(first.change, Stack) and keys[batch[0]] is not None:
                parts = [(stacks[0], noise, steps[i].infos) for i, (stacks, noise) in zip(batch, deltas, strict=True)]
                change_together(first.change, parts)
            else:
                first._change_each(*deltas[0])
            for i, (stacks, _) in zip(batch, deltas, strict=True):
                base = chunks[i].every[0]
                kernels.weighted_sum(outs[i].view(-1), [base.view(-1), stacks[0].view(-1)], [1.0, steps[i].scale])

    def _deltas(self, out: Tensor, chunk: Chunk) -> tuple[list[Tensor], float]:
        """Return the deltas, each as its matrices [b, m, n], and the rounding noise of the first."""
        assert chunk.base is not None, "a method that applies a spectral merge requires a base"
        if out.numel() != self.group.numel:
            raise ValueError(f"{self.group.name}: a spectral merge needs all {self.group.numel} elements at once")
        models = [chunk.tensors] if len(self.steps) == 1 else [(tensor,) for tensor in chunk.tensors]
        parts = list(zip(self.steps, models, strict=True))
        if self.singles:
            parts += [(SparseMerge([1.0], [keep_all()]), (tensor,)) for tensor in chunk.tensors]
        deltas = [merged_delta(step, chunk.base, part) for step, part in parts]
        if not all(bool(delta.isfinite().all()) for delta in deltas):
            raise ValueError(self._not_finite)
        noise = rounding_noise(chunk.tensors, self.gains, deltas[0])
        return [delta.view(-1, *self.group.shape[-2:]) for delta in deltas], noise

    def _change_each(self, stacks: list[Tensor], noise: float) -> None:
        for matrices in zip(*stacks, strict=True):
            result, infos = self.change(list(matrices), noise)
            # The first delta's memory takes the result.
            matrices[0].copy_(result)
            self.infos.extend(infos)

    def merge_part(self, out: Tensor, chunk: Chunk, merged: Tensor, part: MatrixPart) -> bool:
        assert chunk.base is not None and isinstance(self.change, Stack), "asked of what ranks can merge together"
        import torch

        broken = merged.numel() - int(torch.count_nonzero(merged.isfinite()))
        sums = noise_sums(chunk.tensors, self.gains, merged, self.group.numel)
        found = torch.tensor([broken, *sums], dtype=torch.float64, device=merged.device)
        broken, *sums_of_all = part.total(found).tolist()
        if broken:
            raise ValueError(self._not_finite)
        done = self.change.of_part(merged, noise_of(sums_of_all, self.group.numel), part)
        if done is None:
            return False
        result, info = done
        self.infos.append(info)
        kernels.weighted_sum(out.view(-1), [chunk.base.view(-1), result.view(-1)], [1.0, self.scale])
        return True

    @property
    def _not_finite(self) -> str:
        return f"{self.group.name}: a delta holds NaN or infinity, and has no singular values. Repair the model"
