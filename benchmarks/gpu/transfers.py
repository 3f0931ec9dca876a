"""Times copies: on the device, and between pinned host memory and the device, one way and both at once."""

from __future__ import annotations

import torch

from .._bench import Bench, Bound, Contender

NBYTES = 2**30


def run(bench: Bench) -> None:
    nbytes = 2**12 if bench.check else NBYTES
    pinned = not bench.check
    host, results = (torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned).fill_(i) for i in range(2))
    there, source = (torch.empty(nbytes, dtype=torch.uint8, device=bench.device).random_() for _ in range(2))
    facts = {"shape": nbytes, "dtype": torch.uint8, "models": 1}
    bench.measure("copy", [Contender("torch", lambda: there.copy_(source))], once=2 * nbytes, **facts)
    up = Bound("upload", nbytes, [bench.on_device(lambda: there.copy_(host, non_blocking=True))])
    ways = {
        "copy host to device": lambda: there.copy_(host, non_blocking=True),
        "copy device to host": lambda: results.copy_(source, non_blocking=True),
    }
    for name, way in ways.items():
        bench.measure(name, [Contender("torch", way)], once=nbytes, bound=up, **facts)
    streams = [None, None] if bench.check else [torch.cuda.Stream(), torch.cuda.Stream()]

    def both() -> None:
        for stream, way in zip(streams, ways.values(), strict=True):
            with torch.cuda.stream(stream):
                way()

    name = "copy both ways at once"
    bench.measure(name, [Contender("torch", both)], once=2 * nbytes, bound=up, clock=bench.on_wall, **facts)
