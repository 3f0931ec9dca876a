"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS |= {_letter: 1000**_power, f"{_letter}b": 1000**_power, f"{_letter}ib": 1024**_power}


DEFAULT_RAM = "4GiB"
"""Memory that a command takes beyond the interpreter and its packages, unless it is told."""


def parse_size(size: int | str) -> int:
    """Return bytes: 4GiB is 4 * 2**30, 500MB and 500M are 500 * 10**6, a plain number is bytes.

    Raises:
        ValueError: the text is no size, or the size is not positive.
    """
    if not isinstance(size, (int, str)) or isinstance(size, bool):
        example = f"{size if isinstance(size, float) else 4}GiB"
        raise ValueError(f"{size!r} is not a size; give bytes as a whole number, or text such as {example!r}")
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(size).lower())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{size!r} is not a size; write it like 4GiB, 500MB or 1000000")
    nbytes = int(float(match[1]) * _UNITS[match[2]])
    if nbytes <= 0:
        raise ValueError(f"{size!r} is not a positive size")
    return nbytes


def show_size(nbytes: float) -> str:
    """Return a size in decimal units with three digits, e.g. ``1.23 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"
