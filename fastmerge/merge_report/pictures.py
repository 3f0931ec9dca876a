"""Before and after: norms, cosines to each model and shares kept, by model, by layer, and by layer and module."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..pages import MOST_PANELS, Section, Table, known, mean, model_maps, model_panels, percent
from ..pages.svg import Scale, lines
from .effects import Effect, add_effects, add_moves
from .measuring import Account, Measured
from .summary import MERGED, by_cell

__all__ = ["of_effects"]

Value = Callable[[Effect], float]


def of_effects(account: Account, summary: dict[str, Any]) -> Iterator[Section]:
    """Yield the sections on what became of the models."""
    if summary["effects"]:
        yield _before_and_after(account, summary)
        cells = by_cell(account, based=True)
        if cells:
            yield from _by_cell(account, cells)
    if summary["effects_without_base"]:
        yield _values(account, summary)


def _before_and_after(account: Account, summary: dict[str, Any]) -> Section:
    head = (
        "", "norm of the change", "relative to the base", "elements changed", "cosine with the merge",
        "share kept", "moved the same way", "the other way",
    )  # fmt: skip
    rows = [
        (
            effect["label"], f"{effect['norm']:.4g}", percent(effect["relative_norm"]), percent(effect["density"]),
            _number(effect["cosine"]), percent(effect["kept"]), percent(effect["same_direction"]),
            percent(effect["reversed"]),
        )
        for effect in summary["effects"]
    ]  # fmt: skip
    moved = summary["moved"]
    after = (MERGED, f"{moved['norm']:.4g}", percent(moved["relative_norm"]), percent(moved["density"]))
    text = (
        "A change is a model, or the result, minus the base. The share kept is how much of a model's change is in the "
        "result along its own direction: <d, m> / <d, d>; 100 % is all, 0 nothing, below 0 the opposite. Of the "
        "elements that a model changed, the last columns say how many the merge moved the same way and the other way."
    )
    return Section("Before and after", text, _curves(account), [Table(head, [*rows, (*after, "", "", "", "")])])


def _curves(account: Account) -> tuple[str, ...]:
    """Return the cosine with each model by layer."""
    found: dict[int, dict[int, list[Effect]]] = {}
    for item, model, effect in account.effects(based=True, layers=True):
        assert item.pair.layer is not None
        found.setdefault(model, {}).setdefault(item.pair.layer, []).append(effect)
    if not found:
        return ()
    curves: dict[str, list[tuple[float, float]]] = {
        account.labels[model]: [(layer, add_effects(effects).cosine) for layer, effects in sorted(of_layer.items())]
        for model, of_layer in sorted(found.items())
    }
    if len(curves) > MOST_PANELS:
        layers: dict[float, list[float]] = {}
        for curve in curves.values():
            for layer, value in curve:
                layers.setdefault(layer, []).append(value)
        picks: Mapping[str, Callable[[list[float]], float]]
        picks = {"nearest model": max, "mean": mean, "farthest model": min}
        curves = {
            name: [(layer, pick(known(layers[layer]))) for layer in sorted(layers)] for name, pick in picks.items()
        }
    title = "cosine of the merge with each model, by layer"
    return (lines(curves, title, "layer", "cosine", mark=0.0),)


def _by_cell(account: Account, cells: Mapping[tuple[str, int], list[Measured]]) -> Iterator[Section]:
    models = sorted({model for items in cells.values() for item in items for model in item.effects})
    labels = [account.labels[model] for model in models]

    def maps(value: Value, unit: str, scale: Callable[[Sequence[float]], Scale]) -> tuple[str, ...]:
        found = {cell: [_of_model(items, model, value) for model in models] for cell, items in cells.items()}
        return model_maps(found, account.layers, model_panels(labels), unit, scale)

    norms = {
        cell: [100 * value for value in (*(_relative(items, model) for model in models), _moved(items))]
        for cell, items in cells.items()
    }
    panels: dict[str, Callable[[Sequence[float]], float]] = {
        f"before: {title}": lambda values, pick=pick: pick(values[:-1])  # type: ignore[misc]
        for title, pick in model_panels(labels).items()
    }
    panels[f"after: {MERGED}"] = lambda values: values[-1]
    yield Section(
        "Norms before and after",
        "How far each model, and the merge, moved each module from the base: the norm of the change over that of the "
        "base, all on one scale.",
        model_maps(norms, account.layers, panels, "%"),
    )
    yield Section(
        "Cosine with each model",
        "1 where the merge moved a module in the direction of the model, 0 where the two have nothing in common.",
        maps(lambda effect: effect.cosine, "", functools.partial(Scale.about, 0.0)),
    )
    yield Section(
        "Share kept of each model",
        "How much of each model's change the merge kept along its own direction, by layer and module.",
        maps(lambda effect: 100 * effect.kept, "%", functools.partial(Scale.about, 0.0, least=5.0)),
    )


def _values(account: Account, summary: dict[str, Any]) -> Section:
    rows = [
        (effect["label"], f"{effect['norm']:.4g}", _number(effect["cosine"], 6), percent(effect["distance"]))
        for effect in summary["effects_without_base"]
    ]
    cells = by_cell(account, based=False)
    models = sorted({model for items in cells.values() for item in items for model in item.effects})
    drawn: tuple[str, ...] = ()
    if cells:
        found = {
            cell: [_of_model(items, model, lambda effect: 100 * effect.distance) for model in models]
            for cell, items in cells.items()
        }
        drawn = model_maps(found, account.layers, model_panels([account.labels[model] for model in models]), "%")
    text = (
        "These tensors were merged without a base. The distance is the norm of the result minus the model, over that "
        "of the model; the maps have it by layer and module."
    )
    head = ("", "norm", "cosine with the merge", "distance")
    return Section("Before and after, without a base", text, drawn, [Table(head, rows)])


def _of_model(items: Sequence[Measured], model: int, value: Value) -> float:
    effects = [item.effects[model] for item in items if model in item.effects]
    return value(add_effects(effects)) if effects else math.nan


def _relative(items: Sequence[Measured], model: int) -> float:
    mine = [item for item in items if model in item.effects]
    base = math.fsum(item.moved.base for item in mine if item.moved is not None)
    return math.sqrt(math.fsum(item.effects[model].square for item in mine) / base) if base else math.nan


def _moved(items: Sequence[Measured]) -> float:
    return add_moves(item.moved for item in items if item.moved is not None).relative_norm


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{round(value, digits) + 0:.{digits}f}"
