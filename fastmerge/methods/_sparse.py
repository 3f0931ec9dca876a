"""Parts that the methods on sparse deltas share: keep rules from densities, rescale factors, parameters."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

from ..kernels import FoundFactors, Keep, drop_threshold, keep_all, keep_random, keep_top, tensor_key
from ..kernels.sparse_merge import Divide, Vote
from ..steps.census import model_boundaries
from ..steps.method import Group, Parameter
from ..steps.survey import Boundaries, NormsAndRules, Survey

WEIGHT = Parameter("weight", float, per_model=True, doc="coefficient of the model's delta", neutral=1.0)
SCALE = Parameter("lambda", float, 1.0, doc="scale of the merged delta")
# For methods with a profile that has none.
LAMBDA = replace(SCALE, semantics=("mergekit",))
# mergekit recipes carry it; there it bounds the memory of masks, which do not exist here.
INT8_MASK = Parameter("int8_mask", bool, False, semantics=("mergekit",), doc="accepted; has no effect on the result")

# How PEFT elects signs, and what ``kernels.sparse_merge`` calls it.
SIGN_VOTES: dict[str, Vote] = {"total": "sum", "frequency": "count"}
SIGN_METHOD = Parameter(
    "majority_sign_method", str, "total", choices=tuple(SIGN_VOTES), semantics=("peft",),
    doc="elect signs by the sum of the deltas or by the number of models",
)  # fmt: skip

Factors = list[float] | FoundFactors

# mergekit leaves a delta alone when one of its L1 norms is below this.
_TINY_NORM = 1e-7


def density_parameter(kept: str) -> Parameter:
    """Return the parameter ``density``; ``kept`` says which elements of a delta are kept."""
    return Parameter("density", float, 1.0, per_model=True, minimum=0.0, maximum=1.0, saturates=True, doc=kept)


DARE_PARAMETERS = (
    WEIGHT,
    density_parameter("probability that an element of the delta is kept"),
    Parameter("rescale", bool, True, semantics=("mergekit",), doc="give each dropped delta its L1 norm back"),
    Parameter("normalize", bool, False, semantics=("mergekit",), doc="divide by the sum of the weights"),
    LAMBDA,
    INT8_MASK,
)


def keep_largest(group: Group, least: int) -> Generator[Survey, Any, list[Keep]]:
    """Return rules that keep the ``max(least, int(density * n))`` largest magnitudes of each delta.

    Density 0 keeps nothing and density 1 everything; no survey where that holds for every model.
    """
    ranks = [_rank(density, group.numel, least) for density in group["density"]]
    if all(rank == group.numel for rank in ranks):
        return [keep_all() for _ in ranks]
    boundaries = yield Boundaries([[rank] for rank in ranks], for_rules=True)
    return [
        keep_all() if rank == group.numel else keep_top(boundary)
        for rank, (boundary,) in zip(ranks, boundaries, strict=True)
    ]


def keep_largest_of_model(group: Group) -> Generator[Survey, Any, list[Keep]]:
    """Return rules that keep the int(density * n) largest of all n magnitudes of each delta of a model."""
    densities = group["density"]
    boundaries = yield from model_boundaries(group, str(densities), lambda k, n: _rank(densities[k], n, least=0))
    return [keep_top(boundary) for boundary in boundaries]


def _rank(density: float, numel: int, least: int) -> int:
    if density <= 0 or numel == 0:
        return 0
    return numel if density >= 1 else max(least, int(density * numel))


def keep_at_random(group: Group) -> list[Keep]:
    """Return rules that keep each element of model k with probability ``density[k]``, independently."""
    key = tensor_key(group.seed, group.name)
    return [
        keep_all() if density >= 1 else keep_random(key, k, drop_threshold(1 - density))
        for k, density in enumerate(group["density"])
    ]


def matched(group: Group, keeps: Sequence[Keep]) -> Generator[Survey, Any, tuple[Factors, Sequence[Keep]]]:
    """Return ``weight_k * |d_k|_1 / |kept part of d_k|_1``, and rules that keep the same elements, for the merge.

    The kept part gets back the L1 norm of the whole delta. Without rescaling where either norm is below 1e-7, as
    mergekit does; no survey where everything is kept.
    """
    if all(keep == keep_all() for keep in keeps):
        return list(group["weight"]), keeps
    factors = []
    answer = yield NormsAndRules(keeps, factors_of=(group["weight"], _TINY_NORM))
    if isinstance(answer, FoundFactors):
        return answer, keeps
    norms, rules = answer
    for k, (weight, (total, kept)) in enumerate(zip(group["weight"], norms, strict=True)):
        if not math.isfinite(total):
            raise ValueError(
                f"{group.name}: the delta of model {k} holds NaN or infinity; its L1 norm cannot be matched. "
                "Repair the model or set rescale: false"
            )
        factors.append(weight if min(total, kept) < _TINY_NORM else weight * (total / kept))
    return factors, rules


def l1_factors(group: Group, keeps: Sequence[Keep]) -> Generator[Survey, Any, Factors]:
    """Return the factors of ``matched``, of rules that draw nothing."""
    factors, _ = yield from matched(group, keeps)
    return factors


def dropped_at_random(group: Group) -> Generator[Survey, Any, tuple[Factors, Sequence[Keep]]]:
    """Return the factors of randomly dropped deltas, and the rules that drop.

    The factors are ``weight_k / density_k`` for peft, else by L1 norm if so asked.
    """
    keeps = keep_at_random(group)
    if group.semantics == "peft":
        return [w / d if d > 0 else w for w, d in zip(group["weight"], group["density"], strict=True)], keeps
    return (yield from matched(group, keeps)) if group["rescale"] else (list(group["weight"]), keeps)


def rescaled(group: Group, keeps: Sequence[Keep]) -> Generator[Survey, Any, Factors]:
    """Return the factors of ``l1_factors`` if the group asks to ``rescale``, else the weights."""
    return (yield from l1_factors(group, keeps)) if group["rescale"] else list(group["weight"])


def divisor(group: Group) -> Divide:
    """Return what the sum of a method with ``normalize`` is divided by."""
    return "weights" if group["normalize"] else "none"
