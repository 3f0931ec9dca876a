"""TIES: trim, elect sign, disjoint merge."""

from __future__ import annotations

from dataclasses import replace

from ..steps.apply import SparseMerge
from ..steps.method import Group, Method, Parameter, Solve, method
from ._mecha_ties import merge_by_number
from ._model_ties import merge_whole_model
from ._sparse import (
    INT8_MASK,
    SCALE,
    SIGN_METHOD,
    SIGN_VOTES,
    WEIGHT,
    density_parameter,
    divisor,
    keep_largest,
    l1_factors,
)

_WHOLE_MODEL = ("paper", "fusionbench")


@method
class Ties(Method):
    """theta = base + lambda * disjoint mean of the trimmed deltas   (Yadav et al. 2023, arXiv 2306.01708).

    Per tensor::

        trim    d_k = the max(1, int(density_k * n)) largest magnitudes of theta_k - base, the rest 0
        elect   s = sign of sum_k w_k d_k, per element; + where the sum is 0
        merge   sum of the w_k d_k with sign s / sum of their w_k          (not divided with ``normalize: false``)

    Exactly so many elements are kept: of equal magnitudes those with the lowest index. Density 0
    keeps nothing, density 1 everything. ``rescale`` multiplies a trimmed delta by the L1 norm it had
    before over the one that is left (left alone where either is below 1e-7).

    semantics peft: ``ties`` of PEFT, on deltas. Keeps int(density_k * n); the sign is elected by the
    deltas without their weights, by sum (``majority_sign_method: total``) or by number
    (``frequency``, which may outvote an infinite delta); divides by the number of models that agree.

    semantics paper: the code of the paper. One threshold for all tensors of the model together, n elements: the
    magnitude of rank int(density_k * n) + 1, which is kept with all that equal it. The sign is that of the sum of the
    kept deltas; where they cancel, the one that more elements of the model have, - if as many. ``merge_func`` takes of
    the deltas with that sign the mean, the sum or the largest; no weights. Reads the model once before it merges,
    three times where it trims. A tensor that is merged by itself is a model.

    semantics fusionbench: the same with FusionBench's defaults, a sum times 0.3.

    semantics sd-mecha: ``ties_sum`` of sd-mecha 1.1.8. The threshold of a tensor of n elements is the smallest of its
    n + 1 - max(1, int((1 - density_k) n)) largest magnitudes, and is kept with all that equal it. The sign is elected
    by number (``majority_sign_method: frequency``, its ``vote_sgn`` off) or by the sum; where neither wins, nothing is
    added. The deltas with that sign are averaged, without weights. NaN and infinity stay; there they become 0.

    Raises ValueError with ``rescale`` when a delta holds NaN or infinity. Otherwise they propagate.
    """

    name = "ties"
    base = "required"
    parameters = (
        replace(WEIGHT, semantics=("mergekit", "peft")),
        replace(
            density_parameter("share of each delta that is kept, largest magnitudes first"),
            defaults=(("paper", 0.2), ("fusionbench", 0.2)),
        ),
        Parameter("normalize", bool, True, semantics=("mergekit",), doc="divide by the weights that agree in sign"),
        Parameter("rescale", bool, False, semantics=("mergekit",), doc="give each trimmed delta its L1 norm back"),
        replace(SCALE, semantics=("mergekit", *_WHOLE_MODEL, "sd-mecha"), defaults=(("fusionbench", 0.3),)),
        INT8_MASK,
        replace(SIGN_METHOD, semantics=("peft", "sd-mecha"), defaults=(("sd-mecha", "frequency"),)),
        Parameter(
            "merge_func", str, "mean", choices=("mean", "sum", "max"), semantics=_WHOLE_MODEL,
            defaults=(("fusionbench", "sum"),), doc="what becomes of the deltas that agree in sign",
        ),
    )  # fmt: skip
    semantics = ("mergekit", "peft", *_WHOLE_MODEL, "sd-mecha")
    summary = "trims deltas, elects signs, averages"
    paper = "Yadav et al. 2023, arXiv 2306.01708"
    on_strips = True
    leaves = True

    def censuses(self, group: Group) -> int:
        return 0 if group.semantics not in _WHOLE_MODEL else 3 if min(group["density"]) < 1 else 1

    def merge(self, group: Group) -> Solve:
        if group.semantics in _WHOLE_MODEL:
            return (yield from merge_whole_model(group))
        if group.semantics == "sd-mecha":
            return (yield from merge_by_number(group))
        if group.semantics == "peft":
            keeps = yield from keep_largest(group, least=0)
            return SparseMerge(group["weight"], keeps, vote=SIGN_VOTES[group["majority_sign_method"]], divide="count")
        keeps = yield from keep_largest(group, least=1)
        weights = group["weight"]
        factors = (yield from l1_factors(group, keeps)) if group["rescale"] else weights
        return SparseMerge(factors, keeps, weights, vote="weighted", divide=divisor(group), scale=group["lambda"])
