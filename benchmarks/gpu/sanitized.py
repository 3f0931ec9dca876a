"""Runs every operation once per size: ``compute-sanitizer python -m benchmarks.gpu.sanitized ELEMENTS ...``.

Results are compared with the reference on the CPU, as everything is before it is timed.
"""

from __future__ import annotations

import argparse

import torch

from .cases import OPERATIONS, make_inputs, verify
from .timing import backends_on


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.sanitized", description=__doc__)
    parser.add_argument("elements", nargs="+", type=int)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    backends = backends_on(device)
    if not backends:
        parser.error(f"no backend runs on {device}; the reasons are above")
    for elements in options.elements:
        for case in OPERATIONS:
            able = [backend for backend in backends if case.can_run(device, backend)]
            verify(case, make_inputs(case, elements, 3, torch.bfloat16, torch.device("cpu"), 1), device, able)
            print(f"{case.name} of {elements} elements: {', '.join(able)}", flush=True)


if __name__ == "__main__":
    main()
