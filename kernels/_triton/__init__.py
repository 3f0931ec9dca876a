"""The Triton backend: one file per operation, imported by the first call that runs on it.

Every kernel returns the bits of the reference in the file of its operation.
"""

from __future__ import annotations

import functools
import importlib.util
import os


@functools.cache
def why_unavailable() -> str | None:
    """Return the reason why the Triton backend cannot run, or None. Imports nothing."""
    import torch

    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install 'fastmerge[triton]'"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if not torch.cuda.is_available():
        return "no CUDA device is available"
    return None
