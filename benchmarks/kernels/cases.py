"""What is measured: merges of a base and three experts, their parameters, and the bytes that they must move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastmerge.methods import Group, get_method
from fastmerge.steps.driver import Job, merge_alone
from fastmerge.steps.inputs import split
from fastmerge.steps.source import Resident

from ..accuracy.cases import STATISTICS
from ..accuracy.statistics import files

EXPERTS = 3


@dataclass(frozen=True)
class Case:
    """One merge.

    Attributes:
        method: its name in recipes.
        inputs: tensors that it reads, the base included.
        values: parameters; a tuple has one value per input (without the base, where the method has one).
        surveys: how often it reads its inputs before the pass that writes.
        columns: elements of a row, for a method that looks at rows; None takes vectors.
        near:   False where rounding in bfloat16 moves what the peers make so far that it cannot be compared.
        most:   elements that it is measured on at most; for methods whose time grows faster than the size.
    """

    method: str
    inputs: int
    values: dict[str, Any]
    surveys: int
    columns: int | None = None
    near: bool = True
    most: int | None = None

    def shaped(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return vectors as the matrices that the case is measured on, without the elements beyond the last row."""
        tensors = [t[: self.most] for t in tensors]
        if self.columns is None:
            return tensors
        return [t[: t.numel() // self.columns * self.columns].view(-1, self.columns) for t in tensors]

    @property
    def has_base(self) -> bool:
        """nuslerp and multislerp can do without, and do here."""
        return get_method(self.method).base == "required"

    @property
    def random(self) -> bool:
        return get_method(self.method).random

    def bytes_moved(self, elements: int, itemsize: int) -> int:
        """Bytes of all passes: every read of every input, and the output."""
        return elements * itemsize * ((1 + self.surveys) * self.inputs + 1)

    def bytes_once(self, elements: int, itemsize: int) -> int:
        """Bytes with every input read once and the output written once: what any method must move at least."""
        return elements * itemsize * (self.inputs + 1)

    def group(self, name: str, shape: Sequence[int]) -> Group:
        """Return what the method is told of a tensor."""
        method, count = get_method(self.method), self.inputs - self.has_base
        known, profile = method.parameters_of(method.semantics[0]), method.semantics[0]
        values = {p.name: (p.default,) * count if p.per_model else p.default for p in known} | self.values
        if kind := STATISTICS.get(self.method):
            values[kind] = files(kind, name, (shape[0], shape[1]), count)
        return Group(name, tuple(shape), count, values, semantics=profile)

    def job(self, out: Tensor, tensors: Sequence[Tensor], name: str = "benchmark.weight") -> Job:
        """Return the merge of ``tensors`` (base first) into ``out``."""
        source = Resident.of(split(tensors[: self.inputs], self.has_base))
        return Job(get_method(self.method), self.group(name, out.shape), source, out)

    def run(self, out: Tensor, tensors: Sequence[Tensor]) -> None:
        """Merge ``tensors`` (base first) into ``out`` with fastmerge."""
        merge_alone(self.job(out, tensors))


# mergekit's defaults: ties and della divide by the weights of the elected sign, dare_ties and della rescale to the norm
# before dropping, which takes a survey.
CASES = (
    Case("linear", EXPERTS + 1, {"weight": (0.4, 0.3, 0.2, 0.1)}, surveys=0),
    Case("slerp", 2, {"t": 0.3}, surveys=1),
    Case("ties", EXPERTS + 1, {"weight": (0.5, 0.3, 0.2), "density": (0.5,) * EXPERTS}, surveys=1),
    Case("dare_ties", EXPERTS + 1, {"weight": (0.5, 0.3, 0.2), "density": (0.5,) * EXPERTS}, surveys=1),
    Case("della", EXPERTS + 1, {"weight": (0.5, 0.3, 0.2), "density": (0.5,) * EXPERTS}, surveys=2, columns=4096),
)

_WEIGHT, _DENSITY = (0.5, 0.3, 0.2), (0.5,) * EXPERTS

# The other methods that see a tensor element by element or by its rows.
OTHERS = (
    Case("arcee_fusion", 2, {}, surveys=1, columns=4096, near=False),
    Case("breadcrumbs", EXPERTS + 1, {"weight": _WEIGHT, "density": _DENSITY}, surveys=1),
    Case("breadcrumbs_ties", EXPERTS + 1, {"weight": _WEIGHT, "density": _DENSITY}, surveys=1),
    Case("consensus", EXPERTS + 1, {}, surveys=0),
    Case("dare_linear", EXPERTS + 1, {"weight": _WEIGHT, "density": _DENSITY}, surveys=1),
    Case("della_linear", EXPERTS + 1, {"weight": _WEIGHT, "density": _DENSITY}, surveys=2, columns=4096),
    Case("emr", EXPERTS + 1, {"task": 1}, surveys=1),
    Case("expo", 2, {"alpha": 0.3}, surveys=0),
    Case("karcher", EXPERTS, {}, surveys=1, near=False),
    Case("magmax", EXPERTS + 1, {}, surveys=0),
    Case("magnitude_prune", EXPERTS + 1, {"weight": _WEIGHT, "density": _DENSITY}, surveys=1),
    Case("model_stock", EXPERTS + 1, {}, surveys=1, near=False),
    Case("multislerp", EXPERTS, {"weight": _WEIGHT}, surveys=1),
    Case("nearswap", 2, {"t": 1e-3}, surveys=0),
    Case("nuslerp", 2, {"weight": (0.6, 0.4)}, surveys=1),
    Case("passthrough", 1, {"scale": (0.7,)}, surveys=0),
    Case("ram", EXPERTS + 1, {}, surveys=0),
    Case("ramplus_tl", EXPERTS + 1, {}, surveys=1),
    Case("sce", EXPERTS + 1, {"select_topk": 0.4}, surveys=5),
    Case("tall_mask", EXPERTS + 1, {"task": 1}, surveys=0),
    Case("task_arithmetic", EXPERTS + 1, {"weight": _WEIGHT}, surveys=0),
)

_SQUARE = {"columns": 1024, "most": 1 << 20}

# Those that take a matrix whole, or read statistics of it.
WHOLE = (
    Case("fisher", EXPERTS, {}, surveys=0, **_SQUARE),
    Case("iso_c", EXPERTS + 1, {"matrices": "all"}, surveys=0, **_SQUARE),
    Case("iso_cts", EXPERTS + 1, {"matrices": "all"}, surveys=0, **_SQUARE),
    Case("knots", EXPERTS + 1, {"matrices": "all"}, surveys=0, near=False, **_SQUARE),
    Case("regmean", EXPERTS, {}, surveys=0, near=False, **_SQUARE),
    Case("task_arithmetic_sb", EXPERTS + 1, {"weight": _WEIGHT, "matrices": "all"}, surveys=0, **_SQUARE),
    Case("ties_sb", EXPERTS + 1, {"weight": _WEIGHT, "density": _DENSITY, "matrices": "all"}, surveys=1, **_SQUARE),
    Case("tsv_c", 2, {"share": 0.5, "matrices": "all"}, surveys=0, **_SQUARE),
    Case("tsvm", EXPERTS + 1, {"matrices": "all"}, surveys=0, **_SQUARE),
)
