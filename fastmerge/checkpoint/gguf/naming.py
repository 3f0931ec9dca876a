"""Names of GGUF files: a model is one file, or parts that are numbered."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.ASCII | re.DOTALL)


def parts_of(path: str) -> list[str]:
    """Return the paths of all parts of the model that a file belongs to: of its name alone, they need not exist."""
    folder, name = os.path.split(path)
    match = _PART.fullmatch(name)
    if match is None or not int(match[3]):
        return [path]
    count = int(match[3])
    return [os.path.join(folder, f"{match[1]}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]


def models_in(names: Iterable[str]) -> list[list[str]]:
    """Return the models among the names of files, each as those of its parts that are there."""
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.endswith(".gguf"):
            models.setdefault(parts_of(name)[0], []).append(name)
    return list(models.values())
