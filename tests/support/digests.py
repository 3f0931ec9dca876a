"""Prints checksums of what the operations of the CPU backend return: ``PYTHONPATH=. python tests/support/digests.py``.

The inputs are the same on every processor (torch's normal numbers are not), so that two machines can be compared.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Iterator
from random import Random

import torch
from kernel_cases import CASES, SIZES, Draw, Variant
from torch import Tensor

from fastmerge.kernels import _native

ROUNDS = 4


class SameDraw(Draw):
    """Inputs made by exact arithmetic from integers."""

    def randn(self, *shape: int) -> Tensor:
        integers = torch.randint(-(2**16), 2**16, shape or (self.numel,), generator=self.generator)
        return integers.float() * 2.0**-15


def flattened(value: object) -> Iterator[bytes]:
    """Yield the bytes of a result; every NaN counts as one, since payloads differ between processors."""
    if not isinstance(value, Tensor):
        yield repr(value).encode()
        return
    if value.is_floating_point():
        value = torch.where(value.isnan(), torch.full_like(value, float("nan")), value)
    yield value.contiguous().view(torch.uint8).numpy().tobytes() if value.numel() else b""


def main() -> None:
    print(f"{platform.machine()}, {_native.cpu_extension().isa()}, torch {torch.__version__}", file=sys.stderr)
    for name, case in CASES.items():
        digest = hashlib.sha256()
        for number, numel in enumerate(ROUNDS * SIZES):
            draw = SameDraw(Random(number), torch.Generator().manual_seed(number), numel, 1 + number % 4)
            run = case(draw)
            with Variant("cpu").active():
                for part in flattened(run()):
                    digest.update(part)
        print(name, digest.hexdigest())


if __name__ == "__main__":
    main()
