"""PEFT's merges of task tensors, done by fastmerge's kernels or refused."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ... import kernels
from ...tensors import merge_tensors
from ..calls import Uncovered, check_plain
from ..masks import draw

FUNCTIONS = ("task_arithmetic", "magnitude_prune", "ties", "dare_linear", "dare_ties")
"""Of ``peft.utils.merge_utils``; the names are those of our methods, too."""

Random = Literal["counter", "peft"]
# PEFT's names of votes, and those of the kernels.
_VOTES: dict[str, Literal["sum", "count"]] = {"total": "sum", "frequency": "count"}


class Settings(NamedTuple):
    """How results are made.

    Attributes:
        random: whose random masks: fastmerge's counters, keyed by torch's generator, or the ones that PEFT would draw.
        fix:    give what PEFT's users expect where PEFT is known to be wrong.
    """

    random: Random = "counter"
    fix: bool = False


def merge(
    name: str,
    settings: Settings,
    task_tensors: Sequence[Tensor],
    weights: Tensor,
    density: float = 1.0,
    majority_sign_method: str = "total",
) -> Tensor:
    """Return what the function ``name`` of PEFT returns, float32.

    Raises:
        Uncovered: PEFT's own function has to do it.
    """
    tensors = list(task_tensors)
    if not tensors or not isinstance(weights, Tensor) or weights.dim() != 1 or len(weights) != len(tensors):
        raise Uncovered("weights that are not one per tensor")
    check_plain(tensors)
    if torch.promote_types(weights.dtype, tensors[0].dtype) is not torch.float32:
        raise Uncovered(f"weights of dtype {weights.dtype} with tensors of dtype {tensors[0].dtype}")
    if majority_sign_method not in _VOTES or not density >= 0:
        raise Uncovered("an argument that PEFT refuses")
    drops = name.startswith("dare_")
    if drops and density == 0 and not settings.fix:
        raise Uncovered("density 0, by which PEFT divides")
    if name != "task_arithmetic" and density >= 1:
        warnings.warn(f"The density is {density}: nothing is pruned.", stacklevel=3)
    tensors = [tensor.detach().contiguous() for tensor in tensors]
    way = _with_masks if drops and density < 1 and settings.random == "peft" else _by_kernels
    try:
        with torch.no_grad():
            return way(name, tensors, weights.tolist(), min(float(density), 1.0), majority_sign_method)
    except (ValueError, kernels.BackendError) as error:
        raise Uncovered.refused(error) from error


def _by_kernels(name: str, tensors: list[Tensor], weights: list[float], density: float, sign: str) -> Tensor:
    parameters: dict[str, Any] = {"weight": weights}
    if name != "task_arithmetic":
        parameters["density"] = density
    if name.endswith("ties"):
        parameters["majority_sign_method"] = sign
    # Drawn for every call: PEFT's functions do not know the names of their tensors.
    seed = int(torch.randint(2**62, ())) if name.startswith("dare_") else 0
    return merge_tensors(
        torch.zeros_like(tensors[0]), tensors, method=name, semantics="peft", seed=seed, dtype=torch.float32,
        **parameters,
    )  # fmt: skip


def _with_masks(name: str, tensors: list[Tensor], weights: list[float], density: float, sign: str) -> Tensor:
    """DARE with the masks that PEFT would draw."""
    if tensors[0].dtype is torch.float16:
        raise Uncovered("float16, in which torch draws nothing on the CPU")
    keeps = [kernels.keep_masked(draw(tensor, density).packed()) for tensor in tensors]
    out = torch.empty_like(tensors[0], dtype=torch.float32)
    kernels.sparse_merge(
        out, torch.zeros_like(tensors[0]), tensors, keeps=keeps,
        factors=[weight / density if density > 0 else weight for weight in weights],
        vote=_VOTES[sign] if name == "dare_ties" else "none", divide="count" if name == "dare_ties" else "none",
    )  # fmt: skip
    return out
