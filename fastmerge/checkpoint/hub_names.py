"""Names of models that are no local folders: what may be asked of the hub, and what was meant to be a folder.

A name with a slip in it must not leave the machine: it tells a stranger what lies here, and somebody may own it there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from .foreign import holds_weights

# As huggingface_hub's validate_repo_id has it.
_HUB_ID = re.compile(r"(\w([\w.-]*\w)?/)?\w([\w.-]{0,94}\w)?", re.ASCII)
_FILE = re.compile(r"\.(safetensors|gguf|bin|pth?|ckpt|json|ya?ml|zip|tar|gz|git)$", re.IGNORECASE)
_ADDRESS = re.compile(
    r"(?:https?://)?(?:(?:www\.)?huggingface\.co|hf\.co)/+([^/\s]+/[^/\s?#]+)|hf://([^/\s]+/[^/\s@]+)"
)


def looks_like_hub_id(path: str) -> bool:
    """True for ``name`` and ``owner/name``; says nothing about whether the hub has it."""
    return _HUB_ID.fullmatch(path) is not None and ".." not in path and "--" not in path


def names_a_file(path: str) -> bool:
    """True for what ends as files of models and recipes do."""
    return _FILE.search(path) is not None


def hub_id_of(address: str) -> str | None:
    """Return the hub id that an address of the hub's site names, or None."""
    found = _ADDRESS.match(address)
    return next(filter(None, found.groups())) if found else None


def near_folder(path: str) -> str | None:
    """Return a local folder with a model that ``path`` was probably meant to be, or None."""
    head, name = os.path.split(os.path.expanduser(path.rstrip("/\\ ").strip()))
    for parent in _parents(head):
        for found in _folders(parent):
            place = os.path.join(parent, found)
            if (found == name or is_near(name, found)) and holds_weights(place):
                return place
    return None


def is_near(name: str, other: str) -> bool:
    """True where two names differ in case or punctuation only, or by one slip that changes no number."""
    if _letters(name) == _letters(other):
        return bool(_letters(name))
    short, long = sorted((name.casefold(), other.casefold()), key=len)
    begin = _shared(short, long)
    end = _shared(short[begin:][::-1], long[begin:][::-1])
    left, right = short[begin : len(short) - end], long[begin : len(long) - end]
    if len(long) < 3 or any(letter.isdigit() for letter in left + right):
        return False
    return len(right) == 1 or (len(right) == 2 and left == right[::-1])


def _shared(name: str, other: str) -> int:
    """Return how many letters two names begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(name, other, strict=False)) if a != b), min(len(name), len(other)))


def _parents(head: str) -> Iterator[str]:
    """Yield the folder ``head``, or those with nearly its name."""
    if os.path.isdir(head or "."):
        yield head
    elif head:
        above, name = os.path.split(head)
        yield from (os.path.join(above, found) for found in _folders(above) if is_near(name, found))


def _folders(parent: str) -> Iterable[str]:
    try:
        return sorted(entry.name for entry in os.scandir(parent or ".") if entry.is_dir())
    except OSError:
        return ()


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
