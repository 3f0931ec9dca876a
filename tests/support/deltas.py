"""Deltas with the spectra of real merges, and the float64 oracle for spectral maps."""

from __future__ import annotations

import torch
from torch import Tensor

# Singular values of at most this share of the largest count as zero.
NULL = 2.0**-22

KINDS = ("low_rank_noise", "bfloat16_difference", "lora_sum", "power_half", "power_one", "gaussian")
# Of a condition number of 1e5 and more.
STEEP = ("lora_sum_5", "lora_sum_20", "power_hard")


def make_delta(kind: str, m: int, n: int, generator: torch.Generator) -> Tensor:
    """Return a float32 [m, n] delta of full rank."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if kind == "low_rank_noise":
        rank = max(1, min(m, n) // 16)
        decay = torch.linspace(1, 0.1, rank, dtype=torch.float64)
        return (0.02 * (normal(m, rank) * decay) @ normal(rank, n) / rank**0.5 + 0.001 * normal(m, n)).float()
    if kind == "bfloat16_difference":
        rank = max(1, min(m, n) // 16)
        base = (0.02 * normal(m, n)).bfloat16()
        update = 0.002 * normal(m, rank) @ normal(rank, n) / rank**0.5 + 0.0003 * normal(m, n)
        return (base.double() + update).bfloat16().float() - base.float()
    if kind.startswith("lora_sum"):
        rank, strength = max(1, min(m, n) // 32), {"lora_sum": 0.01, "lora_sum_5": 0.05, "lora_sum_20": 0.2}[kind]
        base = (0.02 * normal(m, n)).bfloat16()
        update = sum(strength * normal(m, rank) @ normal(rank, n) / rank**0.5 for _ in range(4))
        return (base.double() + update).bfloat16().float() - base.float()
    if kind == "gaussian":
        return (0.001 * normal(m, n)).float()
    exponent = {"power_half": 0.5, "power_one": 1.0, "power_hard": 1.5}[kind]
    size = min(m, n)
    values = torch.arange(1, size + 1, dtype=torch.float64) ** -exponent
    left, right = torch.linalg.qr(normal(m, size)).Q, torch.linalg.qr(normal(n, size)).Q
    return (0.05 * (left * values) @ right.mT).float()


def boost_oracle(delta: Tensor, beta: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, int]:
    """Return the boosted delta by a full SVD in ``dtype``, as the formula reads, and k; null directions map to zero."""
    u, s, vh = torch.linalg.svd(delta.to(dtype), full_matrices=False)
    reached = (s.cumsum(0) / s.sum() >= beta).nonzero()
    k = int(reached[0]) if len(reached) else len(s) - 1
    return (u * s.clamp(min=s[k]) * (s > NULL * s[0])) @ vh, k


def relative_error(result: Tensor, exact: Tensor) -> float:
    """Return ||result - exact||_F / ||exact||_F in float64."""
    return float((result.double() - exact.double()).norm() / exact.double().norm())
