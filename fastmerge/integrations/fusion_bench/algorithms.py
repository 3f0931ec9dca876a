"""FusionBench's own algorithms, as merges by ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..calls import Uncovered
from .pools import merge_pool, plain, pool_of

Merge = Callable[[Any, Any], nn.Module]


def _simple_average(self: Any, pool: Any) -> nn.Module:
    return merge_pool(pool, method="linear", base=None, weight=1.0, inplace=self.inplace)


def _weighted_average(self: Any, pool: Any) -> nn.Module:
    weights = plain(self.weights)
    if len(weights) != len(pool_of(pool).model_names):
        raise Uncovered("another number of weights")
    return merge_pool(pool, method="linear", base=None, weight=weights, normalize=self.normalize)


def _task_arithmetic(self: Any, pool: Any) -> nn.Module:
    scale = float(self.scaling_factor)
    return merge_pool(pool, method="task_arithmetic", weight=1.0, lambda_=scale, inplace=self.inplace)


def _ties(self: Any, pool: Any) -> nn.Module:
    if plain(self.remove_keys):
        raise Uncovered("keys that are left out")
    threshold = float(self.threshold)
    return merge_pool(
        pool, method="ties", semantics="fusionbench", density=threshold / 100 if threshold > 1 else threshold,
        merge_func=self.merge_func, lambda_=float(self.scaling_factor),
    )  # fmt: skip


def _dare(scale: Callable[[Any, int], float]) -> Merge:
    def run(self: Any, pool: Any) -> nn.Module:
        if getattr(self, "only_on_linear_weights", None) or getattr(self, "only_on_linear_weight", None):
            raise Uncovered("only linear weights are dropped")
        if not self.rescale or self.sparsity_ratio >= 1:
            raise Uncovered("no rescaling")
        density, count = 1 - float(self.sparsity_ratio), len(pool_of(pool).model_names)
        return merge_pool(
            pool, method="dare_linear", semantics="peft", weight=scale(self, count), density=density,
            seed=torch.initial_seed() % 2**63,
        )  # fmt: skip

    return run


def _slerp(self: Any, pool: Any) -> nn.Module:
    if (self.DOT_THRESHOLD, self.epsilon) != (0.9995, 1e-8):
        raise Uncovered("another threshold")
    if getattr(self, "model_save_path", None) is not None:
        raise Uncovered("it saves the model itself")
    pool = pool_of(pool)
    if len(pool.all_model_names) != 2:
        raise Uncovered("not two models")
    return merge_pool(pool, method="slerp", base=pool.all_model_names[0], t=float(self.t))


def _model_stock(self: Any, pool: Any) -> nn.Module:
    if plain(self.ignore_keys):
        raise Uncovered("keys that are left out")
    if self.model_save_path is not None:
        raise Uncovered("it saves the model itself")
    if len(pool_of(pool).model_names) != 2:
        raise Uncovered("more than two models, of which it averages the angles")
    return merge_pool(pool, method="model_stock")


def _spectral(method: str, scale: str) -> Merge:
    def run(self: Any, pool: Any) -> nn.Module:
        if plain(self.exclude_keys):
            raise Uncovered("keys that are left out")
        if getattr(self, "return_single_task_models", False):
            raise Uncovered("models of single tasks")
        factor = plain(getattr(self, scale))
        if not isinstance(factor, (int, float, type(None))):
            raise Uncovered("a factor per model")
        more: dict[str, Any] = {"common_share": float(self.common_space_fraction)} if method == "iso_cts" else {}
        return merge_pool(pool, method=method, matrices="all", lambda_=1.0 if factor is None else float(factor), **more)

    return run


ALGORITHMS: dict[str, Merge] = {
    "simple_average:SimpleAverageAlgorithm": _simple_average,
    "weighted_average.weighted_average:WeightedAverageAlgorithm": _weighted_average,
    "task_arithmetic.task_arithmetic:TaskArithmeticAlgorithm": _task_arithmetic,
    "ties_merging.ties_merging:TiesMergingAlgorithm": _ties,
    "dare.task_arithmetic:DareTaskArithmetic": _dare(lambda self, count: float(self.scaling_factor)),
    "dare.simple_average:DareSimpleAverage": _dare(lambda self, count: 1 / count),
    "slerp.slerp:SlerpMergeAlgorithm": _slerp,
    "slerp.slerp:SlerpForCausalLM": _slerp,
    "model_stock.model_stock:ModelStock": _model_stock,
    "isotropic_merging.iso:IsotropicMergingInCommonSubspace": _spectral("iso_c", "scaling_factor"),
    "isotropic_merging.iso:IsotropicMergingInCommonAndTaskSubspace": _spectral("iso_cts", "scaling_factor"),
    "task_singular_vector.TSVM:TaskSingularVectorMerging": _spectral("tsvm", "alpha"),
}
"""What is served, by module and class of ``fusion_bench.method``."""
