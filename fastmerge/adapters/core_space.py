"""Merging LoRA adapters in the small space that they span (Core Space), without the m x n deltas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidInput, Problem
from ..kernels import why_not_plain
from ..methods import find_method
from ..tensors import in_memory, merge_tensors

__all__ = ["merge_adapters"]


@torch.no_grad()
def merge_adapters(
    adapters: Sequence[tuple[Tensor, Tensor]],
    *,
    method: str,
    scales: Sequence[float] | None = None,
    boost: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Merge adapters of one weight by any method on deltas; return the factors (up, down), float32, of the result.

    With U the left singular vectors of ``[up_1 .. up_T]`` and V the right ones of ``[down_1; ..; down_T]``, the core
    matrices ``M_t = U^T up_t down_t V`` hold all of the deltas: ``up_t down_t = U M_t V^T``. The method merges these,
    with its own arithmetic, on a base of zeros; the result is ``U M V^T``, of rank at most the sum of the ranks
    (Panariello et al. 2025, arXiv 2509.17786). U, V and the core matrices are computed in float64; these are merged in
    float32.

    Sums (``task_arithmetic``), ``boost`` and the spectral methods give what they give on the m x n deltas. (``iso_c``
    and ``iso_cts`` divide by the size of the core matrices, not by min(m, n).) ``ties`` and the other sparse methods
    choose elements of the core matrices, so that their result is another one, as in the paper.

    Args:
        adapters: T pairs (up [m, r_t], down [r_t, n]): LoRA's B and A; float32, bfloat16 or float16. Ranks may differ.
        method:   a method that adds a merged delta to a base.
        scales:   T factors of the products, ``lora_alpha / r``; by default 1.
        boost:    as in a recipe; every direction outside the core is null, and stays zero.
        options:  ``semantics``, ``seed``, ``name``, ``backend`` and the parameters of the method.
    Raises:
        InvalidInput: names, values or counts of arguments are wrong, or shapes disagree.
        ValueError:   the method cannot merge the values.

    >>> import torch
    >>> import fastmerge
    >>> one, two = [(torch.randn(6, 2), torch.randn(2, 5)) for _ in range(2)]
    >>> up, down = fastmerge.merge_adapters([one, two], method="task_arithmetic", weight=0.5)
    >>> torch.allclose(up @ down, (one[0] @ one[1] + two[0] @ two[1]) / 2, atol=1e-5)
    True
    """
    declared = find_method(method)
    scales = [1.0] * len(adapters) if scales is None else list(scales)
    problems = list(_problems(adapters, scales))
    if not declared.adds_delta:
        problems.append(Problem("method", f"{method} does not add a merged delta to a base, which adapters are"))
    if problems:
        raise InvalidInput(problems)
    ups = [up.double() for up, _ in adapters]
    downs = [down.double() for _, down in adapters]
    left = torch.linalg.svd(torch.cat(ups, dim=1), full_matrices=False).U
    right = torch.linalg.svd(torch.cat(downs, dim=0), full_matrices=False).Vh
    cores = [
        (scale * (left.mT @ up) @ (down @ right.mT)).float() for up, down, scale in zip(ups, downs, scales, strict=True)
    ]
    # A core matrix has no name by which it could be told from other tensors.
    if any(parameter.name == "matrices" for parameter in declared.parameters):
        options = {"matrices": "all", **options}
    if boost is not None:
        options["boost"] = {"matrices": "all", **boost}
    core = merge_tensors(torch.zeros_like(cores[0]), cores, method=method, **options)
    return (left @ core.double()).float(), right.float()


def _why_no_factor(factor: Any) -> str | None:
    if not isinstance(factor, Tensor):
        return f"is a {type(factor).__name__}; expected a tensor"
    return why_not_plain(in_memory(factor))


def _problems(adapters: Sequence[tuple[Tensor, Tensor]], scales: Sequence[float]) -> Iterator[Problem]:
    if not adapters:
        yield Problem("adapters", "is empty", "give at least one pair (up, down)")
    if len(scales) != len(adapters):
        yield Problem("scales", f"has {len(scales)} values for {len(adapters)} adapters")
    wrong = [i for i, pair in enumerate(adapters) if not isinstance(pair, Sequence) or len(pair) != 2]
    yield from (Problem(f"adapters[{i}]", "is no pair", "give (up, down), LoRA's B and A") for i in wrong)
    if wrong:
        return
    strange = [(f"adapters[{i}]", why) for i, pair in enumerate(adapters) for why in map(_why_no_factor, pair) if why]
    yield from (Problem(where, f"holds what {why}") for where, why in strange)
    if strange:
        return
    for i, (up, down) in enumerate(adapters):
        m, n = adapters[0][0].shape[0], adapters[0][1].shape[-1]
        if up.dim() != 2 or down.dim() != 2 or up.shape[1] != down.shape[0] or (up.shape[0], down.shape[1]) != (m, n):
            found = f"{tuple(up.shape)} and {tuple(down.shape)}"
            yield Problem(f"adapters[{i}]", f"has shapes {found}; expected ({m}, r) and (r, {n})")
        elif not (up.isfinite().all() and down.isfinite().all()):
            yield Problem(f"adapters[{i}]", "holds NaN or infinity", "repair the adapter")
