"""FusionBench with fastmerge's kernels: ``patch()`` serves its algorithms, and ``Fastmerge`` is one of any method.

Served: simple and weighted average, task arithmetic, TIES (all three ``merge_func``), DARE task arithmetic and average,
SLERP, Model Stock of two models, Iso-C, Iso-CTS and TSV-M, of models that are modules with equal names. What is not
covered runs FusionBench's own ``run``, and is counted with the reason: lazy state dicts, models that name target
modules, keys that are left out, thresholds that are not the defaults, Model Stock of more models (it averages angles).

Against FusionBench's own results in float32: the same bits for weighted averages, task arithmetic and TIES; the others
differ by a few roundings, since norms are summed exactly and decompositions take other ways. DARE's masks are
fastmerge's, by torch's seed and the tensor's name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ...errors import InvalidInput, Problem
from ..calls import Report
from ..patching import Patch, apply, undo

if TYPE_CHECKING:
    from .algorithm import Fastmerge

__all__ = ["Fastmerge", "Patch", "Report", "patch", "unpatch"]


def __getattr__(name: str) -> Any:
    if name != "Fastmerge":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .algorithm import Fastmerge

    return Fastmerge


def patch() -> Patch:
    """Replace ``run`` of FusionBench's algorithms until ``unpatch()``, or to the end of a ``with`` block.

    Returns:
        The patch; its ``report`` counts the runs that were served, and those that were left to FusionBench with why.
    Raises:
        InvalidInput: FusionBench is not installed.
    """
    try:
        package = importlib.import_module("fusion_bench")
    except ImportError as error:
        problem = Problem("fusion_bench", f"cannot be imported: {error}", "pip install fusion-bench")
        raise InvalidInput([problem]) from error
    return apply("fusion_bench", Report(f"FusionBench {getattr(package, '__version__', '')}".strip()), _install)


def unpatch() -> None:
    """Give FusionBench its own functions back; where nothing is patched there is nothing to do."""
    undo("fusion_bench")


def _install(patch: Patch) -> None:
    from .algorithms import ALGORITHMS

    for place, merge in ALGORITHMS.items():
        module, name = place.split(":")
        try:
            algorithm = getattr(importlib.import_module(f"fusion_bench.method.{module}"), name)
        except (ImportError, AttributeError) as error:
            patch.report.count(name, f"cannot be imported: {error}")
            continue
        patch.replace(algorithm, "run", patch.serving(name, algorithm.run, merge))
