"""Kinds of adapters beside LoRA: which of their tensors change which tensor of the base."""

from __future__ import annotations

import re
from collections.abc import Callable

from .lora import sort_adalora, sort_lora
from .stored import Stored, by_pattern
from .types import Change

__all__ = ["SORTERS"]

_LOHA = re.compile(r"(?P<module>.+)\.hada_(?P<role>w1_a|w1_b|w2_a|w2_b)")
_LOKR = re.compile(r"(?P<module>.+)\.lokr_(?P<role>w1|w1_a|w1_b|w2|w2_a|w2_b)")
_IA3 = re.compile(r"(?P<module>.+)\.ia3_(?P<role>l)")
_VERA = re.compile(r"(?P<module>.+)\.vera_lambda_(?P<role>[bd])")
_OFT = re.compile(r"(?P<module>.+)\.oft_(?P<role>R)\.weight")
_BOFT = re.compile(r"(?P<module>.+)\.boft_(?P<role>[Rs])")
_LN = re.compile(r"(?P<module>.+)\.ln_tuning_layers\.(?P<role>weight|bias)")


def _scale(stored: Stored, module: str) -> float:
    """Return ``alpha / r`` of a module, as LoHa and LoKr have it."""
    config = stored.config
    rank = by_pattern(config.get("rank_pattern"), module, config["r"])
    return by_pattern(config.get("alpha_pattern"), module, config["alpha"]) / rank


def _sort_loha(stored: Stored) -> None:
    for module, parts in stored.take(_LOHA).items():
        roles = ("w1_a", "w1_b", "w2_a", "w2_b")
        if stored.complete(module, parts, roles):
            matrices = tuple(parts[role] for role in roles)
            stored.change(f"{module}.weight", Change("loha", matrices, _scale(stored, module)))


def _sort_lokr(stored: Stored) -> None:
    """Each side of the Kronecker product is a matrix, or two factors of it: the counts say which."""
    for module, parts in stored.take(_LOKR).items():
        sides = [[side] if side in parts else [f"{side}_a", f"{side}_b"] for side in ("w1", "w2")]
        if stored.complete(module, parts, [role for side in sides for role in side]):
            matrices = tuple(parts[role] for side in sides for role in side)
            detail = tuple(len(side) for side in sides)
            stored.change(f"{module}.weight", Change("lokr", matrices, _scale(stored, module), detail))


def _sort_ia3(stored: Stored) -> None:
    """Rows are scaled, and the bias with them; columns of what the config calls feedforward."""
    for module, parts in stored.take(_IA3).items():
        vector = parts["l"]
        stored.change(f"{module}.weight", Change("ia3", (vector,)))
        if len(vector.shape) == 2 and vector.shape[0] > 1:
            stored.change(f"{module}.bias", Change("ia3", (vector,), optional=True))


def _sort_vera(stored: Stored) -> None:
    shared = [stored.left.pop(name, None) for name in ("base_model.vera_A", "base_model.vera_B")]
    for module, parts in stored.take(_VERA).items():
        if shared[0] is None or shared[1] is None:
            raise stored.wrong("holds no base_model.vera_A and base_model.vera_B, which all of its modules share")
        if stored.complete(module, parts, "bd"):
            stored.change(f"{module}.weight", Change("vera", (shared[1], shared[0], parts["b"], parts["d"])))


def _sort_oft(stored: Stored) -> None:
    """The detail: length of the Neumann series, 0 for the inverse; the bound of constrained rotations, or 0."""
    config = stored.config
    terms = config.get("num_cayley_neumann_terms", 5) if config.get("use_cayley_neumann", True) else 0
    bound = config.get("eps", 6e-5) if config.get("coft") else 0.0
    for module, parts in stored.take(_OFT).items():
        stored.change(f"{module}.weight", Change("oft", (parts["R"],), detail=(terms, bound)))


def _sort_boft(stored: Stored) -> None:
    for module, parts in stored.take(_BOFT).items():
        if not stored.complete(module, parts, "Rs"):
            continue
        if len(parts["R"].shape) == 4 and parts["R"].shape[0] > 1:
            what = f"{module}: boft_n_butterfly_factor is {parts['R'].shape[0]}: several factors are not offered"
            raise stored.wrong(what)
        stored.change(f"{module}.weight", Change("boft", (parts["R"], parts["s"])))


def _sort_ln(stored: Stored) -> None:
    for module, parts in stored.take(_LN).items():
        stored.replaced.update({f"{module}.{role}": entry for role, entry in parts.items()})


SORTERS: dict[str, Callable[[Stored], None]] = {
    "LORA": sort_lora,
    "ADALORA": sort_adalora,
    "LOHA": _sort_loha,
    "LOKR": _sort_lokr,
    "IA3": _sort_ia3,
    "VERA": _sort_vera,
    "OFT": _sort_oft,
    "BOFT": _sort_boft,
    "LN_TUNING": _sort_ln,
    "TRAINABLE_TOKENS": lambda stored: None,
}
"""What takes the tensors of an adapter, by ``peft_type``; tokens and whole tensors are taken for all."""
