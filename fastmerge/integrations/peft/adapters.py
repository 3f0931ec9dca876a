"""Weighted sums of live LoRA adapters: their decomposition through the factors, and what PEFT leaves out of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import kernels
from ...kernels.spectral import factored_svd, top_singular
from ..calls import Uncovered
from ..patching import Patch
from .merging import Settings

_FLOATS = tuple(dtype.torch for dtype in kernels.FLOATS)
# Directions that complete a basis are any; these are always the same.
_SEED = 0


def decompose(
    merged_by: Callable[[str], Callable[..., Tensor]],
    doubled: bool,
    combination_type: str,
    adapters: Sequence[str],
    weights: Sequence[float],
    rank: int,
    target: Any,
    density: float | None,
    majority_sign_method: str,
    clamp: float | None,
) -> tuple[Tensor, Tensor]:
    """Return the factors A [rank, n] and B [m, rank], float32, of a weighted sum of adapters, cut to ``rank``.

    ``svd`` decomposes the small product of the factors (QR of both sides); the others merge m x n deltas and take their
    leading triplets. As in PEFT, B has the singular values; signs of singular vectors are arbitrary, and where the sum
    has a lower rank, the rest of A completes a basis and the rest of B is 0.

    Args:
        merged_by: the function of ``peft.utils.merge_utils`` of a name.
        doubled:   multiply every weight by the scaling once more, as PEFT did before 0.21.
    Raises:
        Uncovered: PEFT's own function has to do it.
    """
    factors = [_factors(target, name) for name in adapters]
    present = [
        (name, weight * (target.scaling[name] if doubled else 1.0), pair)
        for name, weight, pair in zip(adapters, weights, factors, strict=True)
        if pair is not None
    ]
    if not present:
        raise Uncovered("no matching adapters")
    if any(a.dim() != 2 for _, _, (a, _) in present):
        raise Uncovered("a convolution")
    if any(factor.dtype not in _FLOATS for _, _, pair in present for factor in pair):
        raise Uncovered("a dtype of the factors")
    if combination_type == "svd":
        up = torch.cat([b.float() * (weight * target.scaling[name]) for name, weight, (_, b) in present], dim=1)
        down = torch.cat([a.float() for _, _, (a, _) in present])
        u, s, vh = factored_svd(up, down)
    else:
        deltas = [target.get_delta_weight(name) for name, _, _ in present]
        own = torch.tensor([weight for _, weight, _ in present], device=deltas[0].device)
        function = merged_by(combination_type.removesuffix("_svd"))
        votes = (majority_sign_method,) if "ties" in combination_type else ()
        delta = function(deltas, own, density, *votes)
        delta = delta.T if _transposed(target) else delta
        u, s, vh = top_singular(delta.float().contiguous(), min(rank, *delta.shape))[:3]
    return _cut(u, s, vh, rank, clamp)


def _factors(target: Any, name: str) -> tuple[Tensor, Tensor] | None:
    """Return A [r, n] and B [m, r] of an adapter of a layer, or None."""
    if name in target.lora_A:
        return target.lora_A[name].weight.data, target.lora_B[name].weight.data
    if name in target.lora_embedding_A:
        return target.lora_embedding_A[name].data, target.lora_embedding_B[name].data
    return None


def _transposed(target: Any) -> bool:
    return bool(getattr(target, "fan_in_fan_out", False) or len(target.lora_embedding_A))


def _cut(u: Tensor, s: Tensor, vh: Tensor, rank: int, clamp: float | None) -> tuple[Tensor, Tensor]:
    found = min(rank, s.shape[0])
    b, a = (u[:, :found] * s[:found]).float(), vh[:found].float()
    if found < rank:
        b, a = torch.cat([b, b.new_zeros(b.shape[0], rank - found)], dim=1), _completed(a, rank)
    if clamp is not None:
        bound = torch.quantile(torch.cat([b.flatten(), a.flatten()]), clamp)
        b, a = b.clamp(-bound, bound), a.clamp(-bound, bound)
    return a.contiguous(), b.contiguous()


def _completed(rows: Tensor, count: int) -> Tensor:
    """Return orthonormal rows with as many more as make ``count``; zeros where there is no room for them."""
    more = min(count, rows.shape[1]) - rows.shape[0]
    drawn = torch.randn(more, rows.shape[1], generator=torch.Generator().manual_seed(_SEED)).to(rows)
    for _ in range(2):  # once more for what rounding left
        drawn = drawn - (drawn @ rows.T) @ rows
    added = torch.linalg.qr(drawn.T).Q.T
    missing = rows.new_zeros(count - rows.shape[0] - more, rows.shape[1])
    return torch.cat([rows, added, missing])


def mended(own: Callable[..., None]) -> Callable[..., None]:
    """Return ``add_weighted_adapter`` that gives what its weights say where PEFT's does not.

    PEFT #3761: one adapter with the weight 1 is not itself under rsLoRA (scaled once more, by the root of the rank),
    with ``lora_bias`` (left out) and DoRA (its magnitudes are left out). Here the sum is scaled by 1, biases are added
    with their weights and scalings, and one DoRA adapter of weight 1 keeps its magnitudes; other sums of DoRA adapters
    are none of adapters, and refused.
    """

    @functools.wraps(own)
    def add_weighted_adapter(
        self: Any, adapters: list[str], weights: list[float], adapter_name: str, *args: Any, **options: Any
    ) -> None:
        if adapter_name in self.peft_config:
            return
        dora = [name for name in adapters if self.peft_config[name].use_dora]
        if dora and (len(adapters) > 1 or weights[0] != 1):
            raise ValueError(
                f"{', '.join(dora)}: a sum of DoRA adapters is no adapter; merge them into the base one after the "
                "other, or fold each into a model and merge the models"
            )
        own(self, adapters, weights, adapter_name, *args, **options)
        self.peft_config[adapter_name].use_rslora = False
        for layer in self.modules():
            if adapter_name in getattr(layer, "scaling", ()):
                layer.scaling[adapter_name] = 1.0
                _add_biases(layer, adapters, weights, adapter_name)
                if dora and adapter_name in layer.lora_magnitude_vector:
                    magnitudes = layer.lora_magnitude_vector
                    magnitudes[adapter_name].weight.data.copy_(magnitudes[adapters[0]].weight.data)

    return add_weighted_adapter


def _add_biases(layer: Any, adapters: Sequence[str], weights: Sequence[float], adapter_name: str) -> None:
    if adapter_name not in layer.lora_B or layer.lora_B[adapter_name].bias is None:
        return
    into = layer.lora_B[adapter_name].bias.data
    into.zero_()
    for name, weight in zip(adapters, weights, strict=True):
        if name in layer.lora_B and layer.lora_B[name].bias is not None:
            into.add_(layer.lora_B[name].bias.data.to(into), alpha=weight * layer.scaling[name])


def install(patch: Patch, settings: Settings, model: Any, merge_utils: Any, doubled: bool) -> None:
    """Replace the methods of ``LoraModel`` that make weighted adapters."""
    name = "_svd_generalized_task_arithmetic_weighted_adapter"

    @torch.no_grad()
    def serve(
        self: Any, combination_type: str, adapters: list[str], weights: list[float], new_rank: int, target: Any,
        target_lora_A: Any, target_lora_B: Any, density: float | None, majority_sign_method: str,
        clamp: float | None = None, full_matrices: bool = True, driver: str | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        return decompose(
            lambda name: getattr(merge_utils, name), doubled and not settings.fix, combination_type, adapters,
            weights, new_rank, target, density, majority_sign_method, clamp,
        )  # fmt: skip

    patch.replace(model, name, patch.serving(_counted_as, getattr(model, name), serve))
    if settings.fix:
        patch.replace(model, "add_weighted_adapter", mended(model.add_weighted_adapter))


def _counted_as(model: Any, combination_type: str, *arguments: Any, **options: Any) -> str:
    return f"add_weighted_adapter {combination_type}"
