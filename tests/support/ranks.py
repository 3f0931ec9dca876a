"""How processes of tests end that were ranks of a group."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import torch.distributed as dist


def end_well() -> NoReturn:
    """End this rank, which is done: threads of gloo that are still there abort an interpreter that ends as usual."""
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)
