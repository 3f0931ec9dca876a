"""What an analysis means, in words, and the recipe to try first.

Rules of thumb, each said with the number that it rests on: no rule knows what the models are for.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ..checkpoint.distributed import split_key
from .family import Family

__all__ = ["Advice", "advise"]

# At and above, one of two models says what the other says; deltas point the same way; signs meet as by chance.
REDUNDANT, ALIKE, CHANCE = 0.9, 0.5, 0.45
# Norms of deltas this far apart need weights.
UNEVEN = 3.0


@dataclass(frozen=True)
class Advice:
    """Attributes:
    sentences: how far the models are apart, where they conflict, which are redundant.
    first:     what to try first, and why.
    recipe:    that as YAML.
    """

    sentences: tuple[str, ...]
    first: str
    recipe: str


def advise(family: Family, summary: dict[str, Any]) -> Advice:
    """Return what to make of ``summary`` (``summary.summarize``)."""
    models, cosine = summary["models"], summary["cosines"]
    live = [k for k, model in enumerate(models) if model["norm"]]
    kept = _distinct(live, cosine)
    pairs = [(i, j) for i in kept for j in kept if i < j]
    mean = math.fsum(cosine[i][j] for i, j in pairs) / len(pairs) if pairs else math.nan
    method, parameters, why = _choice(len(kept), len(models), mean, summary["weighted_opposition"])
    kept = kept or list(range(len(models)))[:1]
    names = ", ".join(models[k]["label"] for k in kept)
    first = f"Try first: {method} of {names}. {why}"
    text = _recipe(family, kept, method, parameters, f"{method}: {why}")
    return Advice(tuple(_sentences(summary, live, kept)), first, text)


def _sentences(summary: dict[str, Any], live: Sequence[int], kept: Sequence[int]) -> list[str]:
    models, cosine = summary["models"], summary["cosines"]
    labels = [model["label"] for model in models]
    moved = sorted(100 * model["relative_norm"] for model in models)
    said = [f"The models are {moved[0]:.3g} to {moved[-1]:.3g} % of the base's norm away from it."]
    if len(models) == 1:
        said = [f"{labels[0]} is {moved[0]:.3g} % of the base's norm away from it."]
    idle = [labels[k] for k in range(len(models)) if k not in live]
    if idle:
        said.append(f"{', '.join(idle)} changed nothing and can be left out.")
    pairs = [(i, j) for i in live for j in live if i < j]
    if pairs:
        near, far = (pick(pairs, key=lambda pair: cosine[pair[0]][pair[1]]) for pick in (max, min))
        mean = math.fsum(cosine[i][j] for i, j in pairs) / len(pairs)
        text = f"Their deltas have a cosine of {_two(mean)} on average"
        if near != far:
            text += (
                f"; closest are {labels[near[0]]} and {labels[near[1]]} ({_two(cosine[near[0]][near[1]])}), farthest "
            )
            text += f"{labels[far[0]]} and {labels[far[1]]} ({_two(cosine[far[0]][far[1]])})"
        said.append(text + ".")
    redundant = [labels[k] for k in live if k not in kept]
    if redundant:
        said.append(f"Redundant beside the others (cosine of {REDUNDANT} or more): {', '.join(redundant)}.")
    elif pairs:
        said.append(f"No model is redundant: no cosine reaches {REDUNDANT}.")
    most, weighted = summary["most_opposed"], summary["weighted_opposition"]
    if weighted is not None:
        text = f"Where two models change one element, {100 * weighted:.3g} % of the changes, by magnitude, go apart "
        text += f"({100 * summary['opposition']:.3g} % by count; 50 % is chance)"
        if most:
            text += f", most in {most['module']} of layer {most['layer']} ({100 * most['opposition']:.3g} % by count)"
        said.append(text + ".")
    norms = [models[k]["norm"] for k in live]
    if len(norms) > 1 and max(norms) > UNEVEN * min(norms):
        big = labels[max(live, key=lambda k: models[k]["norm"])]
        said.append(
            f"{big} moved {max(norms) / min(norms):.3g} times as far as the least; at equal weights it prevails."
        )
    return said


def _choice(count: int, models: int, cosine: float, opposed: float | None) -> tuple[str, dict[str, Any], str]:
    """Return a method for ``count`` distinct ones of the models, its parameters beside the weights, and why."""
    if count == 0:
        return "task_arithmetic", {}, "Nothing was changed, so that every merge is the base."
    if count == 1:
        why = "It is the only model" if models == 1 else "It has all that the others have"
        return "task_arithmetic", {}, f"{why}: its weight scales the change."
    if cosine >= ALIKE:
        return "linear", {}, f"The deltas point the same way (cosine {cosine:.2f}), so that an average loses little."
    if opposed is not None and opposed >= CHANCE:
        why = f"By magnitude {100 * opposed:.3g} % of the changes go apart: trimming and electing signs keeps what "
        return (
            "ties",
            {"density": 0.5, "normalize": True},
            why + "is strong in one model from being cancelled by noise.",
        )
    why = f"The deltas differ (cosine {cosine:.2f}) and seldom go apart, so that they can be added."
    return "task_arithmetic", {}, why


def _distinct(live: Sequence[int], cosine: Sequence[Sequence[float]]) -> list[int]:
    """Return the models without those that are redundant beside an earlier one."""
    kept: list[int] = []
    for k in live:
        if all(cosine[k][other] < REDUNDANT for other in kept):
            kept.append(k)
    return kept


def _recipe(family: Family, kept: Sequence[int], method: str, parameters: dict[str, Any], why: str) -> str:
    weight = 1.0 if method == "ties" or len(kept) == 1 else round(1 / len(kept), 4)
    document: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": _place(family.models[k]), "parameters": {"weight": weight}} for k in kept],
        **family.training,
    }
    if method != "linear":
        document["base_model"] = _place(family.base)
    if parameters:
        document["parameters"] = parameters
    remark = textwrap.fill(f"Drafted by fastmerge analyze. {why}", 100, initial_indent="# ", subsequent_indent="# ")
    return remark + "\n" + yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _place(reference: str) -> str:
    """Return a reference to a model that holds from every folder."""
    return "+".join(
        os.path.abspath(part) if os.path.exists(split_key(part)[0]) else part for part in reference.split("+")
    )


def _two(value: float) -> str:
    """Return two places, and no minus at a zero."""
    return f"{round(value, 2) + 0:.2f}"
