"""mergekit 0.1.4 and 0.1.5 with fastmerge's kernels: ``patch()``, or its own commands by ``python -m`` on this module.

The inner functions of its merge methods are replaced; files, tokenizers, plans and everything else stay mergekit's.
Calls that are not covered (gradients, float64, integers, scalars, NaN where it matters) run its own functions, and are
counted with the reason. Inputs are never changed.

Against mergekit's own results:

float32:  the same bits for task_arithmetic, ties, breadcrumbs, breadcrumbs_ties, ram, ramplus_tl, linear and nearswap,
          and for DARE with ``random="mergekit"``, where its result is defined: of equal magnitudes at a threshold,
          fastmerge keeps the first. Norms and angles are summed exactly here, so that methods that take them
          (``rescale``, slerp, nuslerp, multislerp, karcher, model_stock, sce) differ by a few float32 roundings.
bfloat16: mergekit rounds after every step, fastmerge once. ``exact_rounding=True`` takes mergekit's steps, for the same
          bits in task_arithmetic, ties, breadcrumbs, breadcrumbs_ties, linear, nearswap and DARE with
          ``random="mergekit"``; the other methods are then left to mergekit.
random:   ``counter`` draws fastmerge's masks, by torch's seed and the tensor's name, whatever the order; ``mergekit``
          draws those of mergekit on the CPU from torch's generator.
"""

from __future__ import annotations

from typing import get_args

from ...errors import InvalidInput, Problem
from ..calls import Report
from ..patching import Patch, apply, undo
from .merging import Random, Settings

__all__ = ["Patch", "Report", "patch", "unpatch"]


def patch(*, exact_rounding: bool = False, random: Random = "counter") -> Patch:
    """Replace the inner functions of the installed mergekit until ``unpatch()``, or to the end of a ``with`` block.

    Args:
        exact_rounding: take mergekit's rounding steps where they are known, and leave it the other methods.
        random:         ``counter`` for fastmerge's masks, ``mergekit`` for those that it would draw on the CPU.
    Returns:
        The patch; its ``report`` counts the calls that were served, and those that were left to mergekit with why.
    Raises:
        InvalidInput: mergekit is not installed, or is another version; or ``random`` is neither.
    """
    if random not in get_args(Random):
        raise InvalidInput([Problem("random", f"is {random!r}", f"use one of {', '.join(get_args(Random))}")])
    report = Report(f"mergekit {_version()}")
    from .hooks import install

    return apply("mergekit", report, lambda made: install(made, Settings(exact_rounding, random)))


def unpatch() -> None:
    """Give mergekit its own functions back; where nothing is patched there is nothing to do."""
    undo("mergekit")


def _version() -> str:
    from importlib import metadata

    try:
        version = metadata.version("mergekit")
    except metadata.PackageNotFoundError:
        problem = Problem("mergekit", "is not installed", "pip install mergekit==0.1.5")
        raise InvalidInput([problem]) from None
    if not version.startswith(("0.1.4", "0.1.5")):
        raise InvalidInput(
            [Problem("mergekit", f"is version {version}", "its inner functions are known for 0.1.4 and 0.1.5")]
        )
    return version
