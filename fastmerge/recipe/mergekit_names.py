"""What mergekit 0.1.5 calls things: methods with their parameters, and keys that do nothing here.

mergekit ignores a key that it does not know. Here a note says so, unless it is nearly the name of a real one: that is
an error.
"""

from __future__ import annotations

_DELTA = frozenset({"weight", "density", "normalize", "rescale", "lambda", "int8_mask"})

# Parameters by method. Those that have no effect in mergekit for a method are left out of its set.
METHODS: dict[str, frozenset[str]] = {
    "arcee_fusion": frozenset(),
    "breadcrumbs": _DELTA | {"gamma"},
    "breadcrumbs_ties": _DELTA | {"gamma"},
    "dare_linear": _DELTA,
    "dare_ties": _DELTA,
    "della": _DELTA | {"epsilon"},
    "della_linear": _DELTA | {"epsilon"},
    "karcher": frozenset({"max_iter", "tol"}),
    "linear": frozenset({"weight", "normalize"}),
    "model_stock": frozenset({"filter_wise"}),
    "multislerp": frozenset({"weight", "normalize_weights", "eps"}),
    "nearswap": frozenset({"t"}),
    "nuslerp": frozenset({"weight", "nuslerp_row_wise", "nuslerp_flatten"}),
    "passthrough": frozenset({"scale"}),
    "ram": frozenset({"epsilon"}),
    "ramplus_tl": frozenset({"r", "alpha", "epsilon"}),
    "sce": frozenset({"select_topk"}),
    "slerp": frozenset({"t"}),
    "task_arithmetic": _DELTA - {"density"},
    "ties": _DELTA,
}

# Hints about memory and devices; the result does not depend on them.
HINTS = frozenset({"int8_mask", "uses_accelerator", "naive_count"})

PARAMETERS = frozenset().union(*METHODS.values()) | HINTS

# Parameters of mergekit's pull request 639 that have another name here.
RENAMED = {"svd_thresh": "beta"}

# Top-level keys that mergekit-evolve leaves in the recipes that it writes.
EVOLVE_KEYS = frozenset({"allow_negative_weights", "layer_granularity", "smooth"})

# A key that only this kind of file has, and what the file is.
OTHER_FILES = {
    "genome": "a configuration of mergekit-evolve, which searches for the parameters of a merge",
}
