"""Adapters that are merged with each other: opened, and compared as far as their headers tell."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoint import Change, PeftAdapter, locate, read_adapter, read_json
from ..errors import CheckpointError, InvalidInput, Problem
from .combining import Combination

__all__ = ["Opened", "modules_of", "open_adapters", "problems_of", "ranks_of"]


@dataclass(frozen=True)
class Opened:
    """One adapter.

    Attributes:
        reference: as the caller names it.
        weight:    of its deltas.
        adapter, config: what its folder holds.
    """

    reference: str
    weight: float
    adapter: PeftAdapter
    config: dict[str, Any]

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of every module."""
        return {name.removesuffix(".weight"): c.parts[0].shape[1] for name, c in self.adapter.changes.items()}

    @property
    def rank(self) -> int:
        """The largest rank that its config names."""
        return int(max([self.config["r"], *(self.config.get("rank_pattern") or {}).values()]))


def open_adapters(references: Sequence[str], weights: Sequence[float]) -> list[Opened]:
    """Open adapters, given as folders or hub ids. InvalidInput names every one that cannot be merged."""
    opened, problems = [], []
    for reference, weight in zip(references, weights, strict=True):
        try:
            folder = locate(os.path.expanduser(reference), None)
            if not os.path.exists(os.path.join(folder, "adapter_config.json")):
                raise CheckpointError(f"{folder} holds no adapter_config.json (name the folder of an adapter)")
            adapter = read_adapter(folder)
            config = read_json(os.path.join(folder, "adapter_config.json")) or {}
            problems += list(_unmerged(reference, adapter, config))
            opened.append(Opened(reference, weight, adapter, config))
        except CheckpointError as error:
            problems.append(Problem(reference, str(error)))
    if problems:
        raise InvalidInput(problems)
    return opened


def _unmerged(reference: str, adapter: PeftAdapter, config: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for what is no pair of LoRA factors."""
    remedy = "fold it into its base: a recipe's model base+adapter"
    kind = config.get("peft_type")
    others = sorted({change.kind for change in adapter.changes.values()} - {"lora"})
    if kind != "LORA":
        yield Problem(reference, f"is an adapter of peft_type {kind}; only LoRA has factors that merge", remedy)
    elif "dora" in others:
        yield Problem(reference, "is DoRA: magnitudes of sums do not merge by factors", remedy)
    elif adapter.experts:
        yield Problem(reference, "adapts parameters (target_parameters), which PEFT does not merge either", remedy)
    elif others:
        what = {"vector": "biases (lora_bias)", "rows": "trained tokens"}.get(others[0], others[0])
        yield Problem(reference, f"holds {what}, which are no factors", remedy)
    elif not adapter.changes:
        yield Problem(reference, "holds no LoRA factors", remedy)


def modules_of(opened: Sequence[Opened]) -> dict[str, list[tuple[Opened, Change]]]:
    """Return the adapters that change each module, with how."""
    modules: dict[str, list[tuple[Opened, Change]]] = {}
    for own in opened:
        for name, change in own.adapter.changes.items():
            modules.setdefault(name.removesuffix(".weight"), []).append((own, change))
    return dict(sorted(modules.items()))


def ranks_of(opened: Sequence[Opened], combination: Combination) -> dict[str, int]:
    """Return the rank that every module gets."""
    modules = modules_of(opened)
    if combination.is_svd:
        return {module: min(combination.rank, *_sides(members[0][1])) for module, members in modules.items()}
    ranks = {module: [own.ranks[module] for own, _ in members] for module, members in modules.items()}
    return {module: sum(own) if combination.kind == "cat" else own[0] for module, own in ranks.items()}


def _sides(change: Change) -> tuple[int, int]:
    """Return the rows and columns of the matrix that an adapter changes."""
    return change.parts[0].shape[0], change.parts[1].shape[1]


def problems_of(opened: Sequence[Opened], combination: Combination) -> Iterator[Problem]:
    """Yield what is wrong with merging these adapters so."""
    for module, members in modules_of(opened).items():
        sides = {(*_sides(c), c.embedding) for _, c in members}
        if len(sides) > 1:
            shapes = " and ".join(f"{m} x {n}" for m, n, _ in sorted(sides))
            where = f"{members[0][0].reference} and others: {module}"
            yield Problem(where, f"has deltas of shapes {shapes}", "merge adapters of one base")
            return
        ranks = {own.ranks[module] for own, _ in members}
        if len(ranks) > 1 and not combination.is_svd and combination.kind != "cat":
            listed = ", ".join(f"{own.ranks[module]} in {own.reference}" for own, _ in members)
            what = f"has ranks {listed}, but {combination.kind} adds factors of one rank"
            yield Problem(module, what, "use svd or cat, or a type that ends in _svd")
            return
        for own, change in members:
            if not math.isfinite(change.scale * own.weight):
                yield Problem(own.reference, f"{module}: its scale {change.scale} times its weight is not finite")
                return
