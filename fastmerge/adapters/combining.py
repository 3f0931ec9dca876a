r"""The arithmetic of merged adapters: PEFT's combination types, for the factors of one module.

With s_k the scale of an adapter, alpha / r, and w_k its weight:

    cat                 lora_B = [B_1 .. B_T], lora_A = [w_1 s_1 A_1; ..; w_T s_T A_T]: the sum of the deltas, exactly
    linear, ties, ..    lora_B and lora_A by themselves, with weights sqrt(|w_k s_k|), the sign of w_k on lora_A
    svd                 the best approximation of rank r of sum_k w_k s_k B_k A_k, by QR of the factors (float64)
    ties_svd, ..        the same of the deltas s_k B_k A_k merged by ties, ..: m x n matrices, one module at a time

The products of ``linear`` and its like are not the merged deltas: (B_1 + B_2)(A_1 + A_2) has mixed terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..kernels.spectral import factored_svd, top_singular
from ..tensors import merge_tensors

__all__ = ["COMBINATIONS", "Combination", "Factors", "Merged"]

# By combination type: the method whose arithmetic it has, with PEFT's semantics; None joins or sums the factors.
_FACTORWISE = {
    "linear": "task_arithmetic", "ties": "ties", "dare_linear": "dare_linear", "dare_ties": "dare_ties",
    "magnitude_prune": "magnitude_prune",
}  # fmt: skip

COMBINATIONS = (
    "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd",
    "magnitude_prune", "magnitude_prune_svd",
)  # fmt: skip
"""PEFT's names."""


@dataclass(frozen=True)
class Factors:
    """An adapter's factors of one module, float32: ``up`` [m, r] and ``down`` [r, n], LoRA's B and A; its scale."""

    up: Tensor
    down: Tensor
    scale: float


@dataclass(frozen=True)
class Merged:
    """The merged factors of one module, float32, with scale 1.

    Attributes:
        up, down: [m, r] and [r, n].
        norm:     Frobenius norm of what an SVD cut; NaN for other combination types.
        missed:   norm of what the rank leaves out of it.
    """

    up: Tensor
    down: Tensor
    norm: float = math.nan
    missed: float = math.nan


@dataclass(frozen=True)
class Combination:
    """How adapters are combined.

    Attributes:
        kind:    one of ``COMBINATIONS``.
        rank:    of the result of an SVD.
        density: share of the elements that is kept; None where the type prunes nothing.
        majority_sign_method: ``total`` or ``frequency``, of the types with ties.
        seed:    of the random types.
        twice:   apply the scales twice in SVD types, as PEFT did before 0.21.
    """

    kind: str
    rank: int = 0
    density: float | None = None
    majority_sign_method: str = "total"
    seed: int = 0
    twice: bool = False

    @property
    def prunes(self) -> bool:
        """True for types that take a density."""
        return self.kind not in ("linear", "cat", "svd")

    @property
    def is_svd(self) -> bool:
        """True for types whose result is cut to a rank."""
        return self.kind.endswith("svd")

    @property
    def needs_matrices(self) -> bool:
        """True for types that prune the elements of m x n deltas."""
        keeps_all = self.kind in ("magnitude_prune_svd", "dare_linear_svd") and self.density == 1
        return self.is_svd and self.prunes and not keeps_all

    @torch.no_grad()
    def merge(self, name: str, factors: Sequence[Factors], weights: Sequence[float]) -> Merged:
        """Return the merged factors of the module ``name``; random types draw by it."""
        if self.kind == "cat":
            # Rounded twice, as PEFT does.
            downs = [f.down * w * f.scale for f, w in zip(factors, weights, strict=True)]
            return Merged(torch.cat([f.up for f in factors], dim=1), torch.cat(downs))
        scaled = [w * f.scale for f, w in zip(factors, weights, strict=True)]
        if not self.is_svd:
            return self._factorwise(name, factors, scaled)
        weights = scaled if self.twice else weights
        if self.needs_matrices:
            return self._cut_matrix(self._merged_matrix(name, factors, weights))
        scales = [w * f.scale for f, w in zip(factors, weights, strict=True)]
        ups = torch.cat([f.up.double() * scale for f, scale in zip(factors, scales, strict=True)], dim=1)
        u, s, vh = factored_svd(ups, torch.cat([f.down.double() for f in factors]))
        return self._cut(u, s, vh, float(s.square().sum()))

    def _factorwise(self, name: str, factors: Sequence[Factors], scaled: Sequence[float]) -> Merged:
        roots = [math.sqrt(abs(weight)) for weight in scaled]
        signed = [math.copysign(root, weight) for root, weight in zip(roots, scaled, strict=True)]
        up = self._elements(f"{name}.lora_B", [f.up for f in factors], roots)
        return Merged(up, self._elements(f"{name}.lora_A", [f.down for f in factors], signed))

    def _elements(self, name: str, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        options: dict[str, Any] = {"weight": list(weights)}
        if self.prunes:
            options["density"] = self.density
        if "ties" in self.kind:
            options["majority_sign_method"] = self.majority_sign_method
        base = torch.zeros_like(tensors[0])
        method = _FACTORWISE[self.kind.removesuffix("_svd")]
        return merge_tensors(base, tensors, method=method, semantics="peft", seed=self.seed, name=name, **options)

    def _merged_matrix(self, name: str, factors: Sequence[Factors], weights: Sequence[float]) -> Tensor:
        deltas = []
        for f in factors:
            delta = torch.zeros(len(f.up), f.down.shape[1])
            kernels.low_rank_update(delta, delta, f.up.contiguous(), f.down.contiguous(), f.scale)
            deltas.append(delta)
        return self._elements(name, deltas, weights)

    def _cut_matrix(self, delta: Tensor) -> Merged:
        square = float(torch.linalg.vector_norm(delta, dtype=torch.float64)) ** 2
        if square == 0:
            return self._padded(delta.new_zeros(len(delta), 0), delta.new_zeros(0, delta.shape[1]), 0.0, 0.0)
        u, s, vh, _ = top_singular(delta, min(self.rank, *delta.shape))
        return self._cut(u.double(), s.double(), vh.double(), square)

    def _cut(self, u: Tensor, s: Tensor, vh: Tensor, square: float) -> Merged:
        rank = min(self.rank, len(s))
        u, s, vh = u[:, :rank], s[:rank], vh[:rank]
        missed = max(square - float(s.square().sum()), 0.0)
        return self._padded((u * s).float(), vh.float(), math.sqrt(square), math.sqrt(missed))

    def _padded(self, up: Tensor, down: Tensor, norm: float, missed: float) -> Merged:
        """Fill up to the rank with zeros, which add nothing."""
        lacking = self.rank - up.shape[1]
        if lacking > 0:
            up = torch.cat([up, up.new_zeros(len(up), lacking)], dim=1)
            down = torch.cat([down, down.new_zeros(lacking, down.shape[1])])
        return Merged(up.contiguous(), down.contiguous(), norm, missed)
