"""The modules of mergekit's multimodal and encoder-decoder models: which tensors belong to each, by name."""

from __future__ import annotations

from .filters import NameFilter

_VISION = r"(^|\.)(vision_tower|vision_model|visual(?!\.(merger|deepstack_merger_list)))\."
_PROJECTOR = r"(^|\.)(multi_modal_projector|mm_projector|visual\.(merger|deepstack_merger_list))\."

_EXPRESSIONS = {
    "vision_tower": _VISION,
    "vision_model": _VISION,
    "multi_modal_projector": _PROJECTOR,
    "encoder": r"(^|\.)encoder\.",
    "decoder": r"(^|\.)decoder\.",
    "shared": r"^shared\.",
}

REST = ("default", "text_decoder")
"""Modules that have every tensor which no other module of the recipe has."""


def filters_of(name: str) -> tuple[NameFilter, ...] | None:
    """Return what matches the tensors of a module; nothing for one that has the rest, None for an unknown one."""
    if name in REST:
        return ()
    return (NameFilter("regex", _EXPRESSIONS[name]),) if name in _EXPRESSIONS else None
