"""``python -m tests.manyways --cases 500``: random merges in many ways. Exits with status 1 where two ways differ.

Every case follows from (seed, number). Refused recipes (weights that cancel, densities that do not fit) count as cases.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.manyways", description=__doc__)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    options = parser.parse_args()
    import torch

    from .cases import make_case
    from .ways import Refused, disagreements

    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = refused = 0
    for number in range(options.first, options.first + options.cases):
        rng = Random(f"{options.seed} {number}")
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            case = make_case(rng, Path(folder))
            try:
                for what in disagreements(rng, case):
                    print(f"case {number} ({case.method.name}): {what}", flush=True)
                    found += 1
            except Refused:
                refused += 1
    print(f"{options.cases} cases, {refused} refused, {found} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
