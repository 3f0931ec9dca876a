"""PEFT with fastmerge's kernels: its functions that merge task tensors, and ``add_weighted_adapter`` of live models.

``svd`` goes through the factors (QR of both sides and the SVD of the small product) instead of the m x n delta, and the
other ``*_svd`` forms take the leading triplets alone. Calls that are not covered run PEFT's own functions, and are
counted with the reason. Inputs are never changed.

Against PEFT's own results:

float32:  the same bits for task_arithmetic, magnitude_prune and ties, where they are defined: of equal magnitudes at a
          threshold fastmerge keeps the first. DARE multiplies by weight / density, PEFT divides first: a rounding.
          svd: the same product within 1e-5 of its norm; signs of singular vectors are arbitrary in both.
bfloat16: PEFT divides by the density in bfloat16, fastmerge rounds once.
random:   ``counter`` draws fastmerge's masks, keyed by torch's generator; ``peft`` the ones that PEFT would draw.
fix:      density 0 gives zeros instead of NaN (PEFT #3486); a weighted adapter is scaled as its weights say under
          rsLoRA, and has the biases of ``lora_bias`` and the magnitudes of DoRA (#3761); scaling counts once in
          ``*_svd`` before PEFT 0.21. Without it all of these are as in the installed PEFT.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import get_args

from ...errors import InvalidInput, Problem
from ..calls import Report
from ..patching import Patch, apply, undo
from .merging import FUNCTIONS, Random, Settings, merge

__all__ = ["Patch", "Report", "patch", "unpatch"]


def patch(*, random: Random = "counter", fix: bool = False) -> Patch:
    """Replace the merges of the installed PEFT until ``unpatch()``, or to the end of a ``with`` block.

    Args:
        random: ``counter`` for fastmerge's masks, ``peft`` for those that it would draw on the CPU.
        fix:    right what PEFT is known to get wrong; by default its results are kept.
    Returns:
        The patch; its ``report`` counts the calls that were served, and those that were left to PEFT with why.
    Raises:
        InvalidInput: PEFT is not installed or has other functions, or ``random`` is neither.
    """
    if random not in get_args(Random):
        raise InvalidInput([Problem("random", f"is {random!r}", f"use one of {', '.join(get_args(Random))}")])
    try:
        version = importlib.import_module("peft").__version__
    except ImportError as error:
        raise InvalidInput([Problem("peft", f"cannot be imported: {error}", "pip install peft")]) from error
    try:
        return apply("peft", Report(f"PEFT {version}"), lambda made: _install(made, Settings(random, fix), version))
    except (ImportError, AttributeError) as error:
        problem = Problem("peft", f"lacks a function: {error}", "its functions are known for 0.17 to 0.21")
        raise InvalidInput([problem]) from error


def unpatch() -> None:
    """Give PEFT its own functions back; where nothing is patched there is nothing to do."""
    undo("peft")


def _install(patch: Patch, settings: Settings, version: str) -> None:
    merge_utils = importlib.import_module("peft.utils.merge_utils")
    model = importlib.import_module("peft.tuners.lora.model").LoraModel
    for name in FUNCTIONS:
        own = getattr(merge_utils, name)
        _replace_everywhere(patch, own, patch.serving(name, own, functools.partial(merge, name, settings)))
    from .adapters import install

    install(patch, settings, model, merge_utils, doubled=_version(version) < (0, 21))


def _replace_everywhere(patched: Patch, own: object, new: object) -> None:
    """Replace a function wherever PEFT's modules imported it by its name."""
    for name, module in list(sys.modules.items()):
        if name == "peft" or name.startswith("peft."):
            for attribute in [key for key, value in vars(module).items() if value is own]:
                patched.replace(module, attribute, new)


def _version(text: str) -> tuple[int, int]:
    major, minor, *_ = text.split(".")
    return int(major), int(minor)
