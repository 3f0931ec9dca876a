"""One merge of one tensor as mergekit asks for it, done by fastmerge's kernels or refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ... import kernels
from ...tensors import merge_tensors
from ..calls import Uncovered, check_plain
from ..masks import draw
from . import rounding

TASKS = ("task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties")
"""The methods that trim, vote and add deltas, and whose rounding steps are known."""

METHODS = (
    *TASKS, "della", "della_linear", "linear", "slerp", "nuslerp", "multislerp", "karcher", "sce", "model_stock",
    "nearswap", "arcee_fusion", "ram", "ramplus_tl",
)  # fmt: skip
"""What is served. ``passthrough`` does no arithmetic worth replacing."""

# Where mergekit's masks are float32, so are its results, whatever the inputs are.
_WIDENED = ("arcee_fusion", "ramplus_tl")
# One product or quotient in another order than in fastmerge's definition: bit-equal only by mergekit's own steps.
_OTHER_ORDER = ("linear", "nearswap")

Random = Literal["counter", "mergekit"]


class Settings(NamedTuple):
    """How results are made.

    Attributes:
        exact_rounding: round after every step, as mergekit does; methods whose steps are not known are left to it.
        random:         whose random masks: fastmerge's counters, or the ones that mergekit would draw on the CPU.
    """

    exact_rounding: bool = False
    random: Random = "counter"


@dataclass(frozen=True)
class Call:
    """One merge.

    Attributes:
        method:     mergekit's name.
        name:       of the tensor; with torch's seed it is the key of counted random numbers.
        base:       [...], or None.
        tensors:    N tensors shaped like it, in mergekit's order; not written.
        parameters: mergekit's names; lists of N values for those of a model.
        old_linear: ``linear`` multiplies and adds in the dtype of the tensors, as mergekit 0.1.4 does.
    """

    method: str
    name: str
    base: Tensor | None
    tensors: Sequence[Tensor]
    parameters: Mapping[str, Any]
    old_linear: bool = False

    @property
    def every(self) -> list[Tensor]:
        """The base, if there is one, and the tensors."""
        return [*self.tensors] if self.base is None else [self.base, *self.tensors]


def merge(call: Call, settings: Settings) -> Tensor:
    """Return the merge, a tensor of its own.

    Raises:
        Uncovered: mergekit's own function has to do it.
    """
    check_plain(call.every)
    contiguous = Call(
        call.method, call.name, None if call.base is None else call.base.contiguous(),
        [tensor.contiguous() for tensor in call.tensors], call.parameters, call.old_linear,
    )  # fmt: skip
    try:
        with torch.no_grad():
            return _way(contiguous, settings)(contiguous)
    except (ValueError, kernels.BackendError) as error:
        raise Uncovered.refused(error) from error


def _way(call: Call, settings: Settings) -> Callable[[Call], Tensor]:
    """Return the function that serves a call."""
    exact, dtype = settings.exact_rounding, call.tensors[0].dtype
    mine = settings.random == "counter"
    if call.method in ("della", "della_linear") and not mine:
        raise Uncovered("mergekit's masks of DELLA depend on how its sort orders equal magnitudes")
    if call.method in _OTHER_ORDER and (exact or dtype is torch.float32):
        return rounding.linear if call.method == "linear" else rounding.nearswap
    if call.method in TASKS:
        drops = call.method.startswith("dare_") and min(call.parameters["density"]) < 1
        rescales = call.method != "task_arithmetic" and call.parameters["rescale"]
        if exact and drops and mine:
            raise Uncovered("exact rounding of masks by counters is nobody's; set random to mergekit")
        # In float32 the kernels take mergekit's own steps, but for norms, which they sum exactly.
        if exact and (dtype is not torch.float32 or rescales):
            return rounding.tasks
        return _by_kernels if mine or not drops else _with_masks
    if exact:
        raise Uncovered("its rounding steps are not known")
    return _by_kernels


def _by_kernels(call: Call) -> Tensor:
    parameters = {"lambda_" if name == "lambda" else name: value for name, value in call.parameters.items()}
    return merge_tensors(
        call.base, call.tensors, method=call.method, name=call.name, seed=torch.initial_seed() % 2**63,
        dtype=torch.float32 if call.method in _WIDENED else None, **parameters,
    )  # fmt: skip


def _with_masks(call: Call) -> Tensor:
    """DARE with the masks that mergekit would draw."""
    assert call.base is not None, "DARE has one"
    parameters, like = call.parameters, call.tensors[0]
    keeps = [
        kernels.keep_all() if density >= 1 else kernels.keep_masked(draw(like, density).packed())
        for density in parameters["density"]
    ]
    factors = list(parameters["weight"])
    if parameters["rescale"]:
        chunks = -(-like.numel() // kernels.GRID)
        partials = torch.empty(chunks, 2 * len(keeps), dtype=torch.float64, device=like.device)
        kernels.norm_partials(partials, call.tensors, call.base, keeps)
        norms = iter(kernels.total(partials))
        for k, (total, kept) in enumerate(zip(norms, norms, strict=True)):
            factors[k] *= 1.0 if min(total, kept) < rounding.TINY else total / kept
    out = torch.empty_like(call.base)
    kernels.sparse_merge(
        out, call.base, call.tensors, factors=factors, keeps=keeps, weights=parameters["weight"],
        vote="weighted" if call.method == "dare_ties" else "none", scale=parameters["lambda"],
        divide="weights" if parameters["normalize"] else "none",
    )  # fmt: skip
    return out
