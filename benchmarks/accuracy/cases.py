"""What is compared: every method on a matrix of a fine-tune, in three dtypes, with one set of parameters each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmerge import kernels
from fastmerge.kernels.keep import RULE_ALL, kept
from fastmerge.methods import Group, get_method
from fastmerge.steps.apply import SparseMerge
from fastmerge.steps.driver import merge_source, solve
from fastmerge.steps.source import Resident

from .formulas import FORMULAS, Case
from .statistics import files

# Parameters that name a file per model.
STATISTICS = {"fisher": "fisher", "regmean": "gram"}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPE, SEEDS, MODELS = (160, 256), (0, 1, 2), 3
NAME = "model.layers.0.mlp.up_proj.weight"

SPARSE = {"weight": (0.5, 0.31, 0.23), "density": (0.5, 0.3, 0.8)}
# Parameters that differ from the defaults, per-model ones for the models that the method takes.
VALUES: dict[str, dict[str, Any]] = {
    "arcee_fusion": {},
    "breadcrumbs": {**SPARSE, "gamma": (0.05, 0.1, 0.02)},
    "breadcrumbs_ties": {**SPARSE, "gamma": (0.05, 0.1, 0.02)},
    "consensus": {"threshold": 2, "mask_lambda": (0.4, 0.5, 0.6)},
    "dare_linear": SPARSE,
    "dare_ties": SPARSE,
    "della": {**SPARSE, "density": (0.5,) * 3, "epsilon": (0.15, 0.1, 0.2)},
    "della_linear": {**SPARSE, "density": (0.5,) * 3, "epsilon": (0.15, 0.1, 0.2)},
    "emr": {"task": 1},
    "expo": {"alpha": 0.3},
    "fisher": {"weight": (1.0, 2.0, 0.5)},
    "iso_c": {"lambda": 0.5},
    "iso_cts": {"lambda": 0.5},
    "karcher": {},
    "knots": {},
    "linear": {"weight": (0.5, 0.31, 0.23)},
    "magmax": {"weight": (1.0, 0.7, 1.2)},
    "magnitude_prune": SPARSE,
    "model_stock": {},
    "multislerp": {"weight": (0.5, 0.31, 0.23)},
    "nearswap": {"t": 1e-3},
    "nuslerp": {"weight": (0.6, 0.4)},
    "passthrough": {"scale": (0.7,)},
    "ram": {"epsilon": 3e-4},
    "ramplus_tl": {"epsilon": 3e-4},
    "regmean": {"weight": (1.0, 2.0, 0.5)},
    "sce": {"select_topk": 0.4},
    "slerp": {"t": 0.35},
    "tall_mask": {"task": 1, "mask_lambda": (0.4, 0.5, 0.6)},
    "task_arithmetic": {"weight": (0.5, 0.31, 0.23), "lambda": 0.7},
    "task_arithmetic_sb": {"weight": (0.5, 0.31, 0.23), "beta": 0.3},
    "ties": SPARSE,
    "ties_sb": {**SPARSE, "density": (1.0,) * 3, "beta": 0.3},
    "tsv_c": {"share": 0.5},
    "tsvm": {"weight": (0.5, 0.31, 0.23)},
}


@dataclass(frozen=True)
class Merge:
    """One method on inputs of one dtype."""

    method: str
    dtype: torch.dtype
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}.{str(self.dtype).removeprefix('torch.')}.{self.seed}"

    @property
    def has_base(self) -> bool:
        return get_method(self.method).base == "required"

    @property
    def group(self) -> Group:
        """What the method is told."""
        method = get_method(self.method)
        models = method.inputs[1] or MODELS
        profile = "exact" if "exact" in method.semantics else method.semantics[0]
        values = {p.name: (p.default,) * models if p.per_model else p.default for p in method.parameters_of(profile)}
        if kind := STATISTICS.get(self.method):
            values[kind] = files(kind, NAME, SHAPE, models)
        return Group(NAME, SHAPE, models, values | VALUES[self.method], semantics=profile)

    def inputs(self) -> tuple[Tensor | None, list[Tensor]]:
        """Return a base and fine-tunes of it: weights N(0, 0.02), tuned by N(0, 5e-4)."""
        generator = torch.Generator().manual_seed(self.seed)
        base = (0.02 * torch.randn(SHAPE, generator=generator)).to(self.dtype)
        tensors = [
            (base.float() + 5e-4 * torch.randn(SHAPE, generator=generator)).to(self.dtype)
            for _ in range(self.group.models)
        ]
        return (base if self.has_base else None), tensors

    def own(self, backend: str) -> tuple[Tensor, list[Tensor]]:
        """Return what fastmerge makes of it on a backend, and the masks that it draws."""
        base, tensors = self.inputs()
        source, out = Resident(base, tuple(tensors)), torch.full(SHAPE, torch.nan, dtype=self.dtype)
        with kernels.use_backend(backend):
            step = solve(get_method(self.method), self.group, source)
            merge_source(get_method(self.method), self.group, source, out)
        masks = []
        if get_method(self.method).random and isinstance(step, SparseMerge):
            assert all(keep.rule != RULE_ALL for keep in step.keeps)
            masks = [
                kept(t.float().flatten(), keep, 0).view(SHAPE) for t, keep in zip(tensors, step.keeps, strict=True)
            ]
        return out, masks

    def formula(self, dtype: torch.dtype, masks: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """Return the formula evaluated in a dtype, and where its result is certain."""
        base, tensors = self.inputs()
        deltas = [] if base is None else [(t.float() - base.float()).to(dtype) for t in tensors]
        case = Case(
            None if base is None else base.to(dtype), [t.to(dtype) for t in tensors], deltas, self.group.values, masks
        )
        return FORMULAS[self.method](case), case.certain

    def error(self, out: Tensor, masks: Sequence[Tensor] = ()) -> float:
        """Return the largest error of a result in units in the last place of its dtype.

        The unit is that of the largest of the exact result and the inputs at an element, of which none is exact to
        less. A result in a wider dtype is rounded first.
        """
        exact, certain = self.formula(torch.float64, masks)
        base, tensors = self.inputs()
        size = torch.stack([exact.abs(), *(x.double().abs() for x in (base, *tensors) if x is not None)]).amax(0)
        unit = torch.finfo(self.dtype).eps * 2.0 ** size.clamp(min=torch.finfo(self.dtype).tiny).log2().floor()
        return ((out.to(self.dtype).double() - exact).abs() / unit)[certain].max().item()
