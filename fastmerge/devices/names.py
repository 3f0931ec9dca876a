"""How the devices of a run are named: ``auto``, ``cpu``, ``cuda``, ``cuda:0`` or ``cuda:0,cuda:1``."""

from __future__ import annotations

import re

# GPUs are asked for until `pytest -m gpu` has passed on one; then this becomes "auto".
DEFAULT = "cpu"


def parse_devices(text: str) -> str | tuple[int, ...]:
    """Return "auto", "cpu", "cuda" (every GPU), or the indices of the GPUs that are named.

    Raises:
        ValueError: the text names no devices, or one twice.
    """
    names = str(text).lower().replace(" ", "").split(",")
    if names in (["auto"], ["cpu"], ["cuda"]):
        return names[0]
    if not all(re.fullmatch(r"cuda:\d+", name) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"{text!r} names no devices; expected auto, cpu, cuda, or GPUs such as cuda:0,cuda:1")
    return tuple(int(name.removeprefix("cuda:")) for name in names)
