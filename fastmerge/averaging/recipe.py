"""An average as a recipe: a linear merge whose weights are those of the schedule."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoint import is_adapter
from ..checkpoint.folder import read_json
from ..errors import InvalidInput, Problem
from ..recipe.writing import Table, of_training, write_recipe
from ..schedules import by_counts, normalized, schedule_of
from .window import window_of


@dataclass(frozen=True)
class Average:
    """Models, their weights, and what makes them one.

    Attributes:
        models:  references of a recipe, oldest first.
        weights: one per model; they add up to 1.
        recipe:  YAML text.
        notes:   what the user should know, one sentence each.
    """

    models: tuple[str, ...]
    weights: tuple[float, ...]
    recipe: str
    notes: tuple[str, ...] = ()


def average_of(
    names: Sequence[str],
    *,
    schedule: str = "uniform",
    weights: Sequence[float] | None = None,
    counts: Sequence[float] | None = None,
    base: str | None = None,
    dtype: str | None = None,
    title: str | None = None,
    names_table: Table | None = None,
    config_source: str | None = None,
    **choice: Any,
) -> Average:
    """Return the average of checkpoints.

    Args:
        names:    as ``window_of`` takes them.
        schedule: as ``schedules.schedule_of`` reads it.
        weights:  one per checkpoint, in place of a schedule; divided by their sum.
        counts:   of samples, one per checkpoint, in place of a schedule (FedAvg).
        base:     the model that adapters are added to before they are averaged.
        dtype:    of the output; None keeps that of the checkpoints.
        title:    what the recipe says of the result; None says how it was averaged.
        names_table, config_source: as in ``average``.
        choice:   ``last``, ``every``, ``start`` and ``stop`` of ``window_of``.
    Raises:
        InvalidInput: no such schedule, counts that do not fit, adapters without a base or with models.
    """
    given = {"schedule": schedule, "weights": weights, "counts": counts}
    named = [name for name, value in given.items() if value not in (None, "uniform")]
    if len(named) > 1:
        what = f"{' and '.join(named)} are given, each of which says how much a checkpoint counts"
        raise InvalidInput([Problem("options", what, "give one of them")])
    kind = named[0] if named else "schedule"
    numbers = weights if weights is not None else counts
    with _problem(kind):
        read = schedule_of(schedule)
    if read.last is not None:
        choice["last"] = min(read.last, choice.get("last") or read.last)
    window = window_of(names, paired=numbers is not None, **choice)
    models = _models(window.models, base)
    if numbers is not None and len(numbers) != len(models):
        what = f"has {len(numbers)} values for {len(models)} checkpoints: {', '.join(window.models)}"
        raise InvalidInput([Problem(kind, what)])
    with _problem(kind):
        found = normalized(weights) if weights is not None else by_counts(counts) if counts is not None else None
        found = read.weights(len(models)) if found is None else found
    recipe: dict[str, Any] = {"description": title or _title(kind, schedule, models), "merge_method": "linear"}
    recipe |= {"models": _items(models, found), "parameters": {"normalize": False}, "integers": "last"}
    recipe |= {} if dtype is None else {"dtype": str(dtype)}
    text = write_recipe(recipe | of_training(names_table, config_source))
    return Average(window.models, tuple(found), text, window.notes)


@contextlib.contextmanager
def _problem(where: str) -> Iterator[None]:
    """Raise ValueError as InvalidInput."""
    try:
        yield
    except InvalidInput:
        raise
    except ValueError as error:
        raise InvalidInput([Problem(where, str(error))]) from error


def _models(names: Sequence[str], base: str | None) -> list[Any]:
    """Return how a recipe names the models: adapters on their base."""
    adapters = [name for name in names if is_adapter(os.path.expanduser(name))]
    models = [name for name in names if name not in adapters and (base is None or os.path.isdir(name))]
    if adapters and models:
        what = f"is an adapter, and {models[0]} is a model"
        raise InvalidInput([Problem(adapters[0], what, "average models with models, and adapters with adapters")])
    if base is not None:
        if models:
            raise InvalidInput([Problem("base", f"is given, but {models[0]} is no adapter", "leave it out")])
        return [_reference(base, adapter) for adapter in names]
    if adapters:
        config = read_json(os.path.join(os.path.expanduser(adapters[0]), "adapter_config.json"))
        what = "is an adapter, whose factors have no average that is that of what they add to a model"
        remedy = f"give that model with --base, such as {config.get('base_model_name_or_path') or 'org/model'}"
        raise InvalidInput([Problem(adapters[0], what, f"{remedy}; for an adapter, fastmerge merge-adapters")])
    return list(names)


def _reference(base: str, adapter: str) -> Any:
    """Return a base with an adapter as a recipe has it: in one text where no letter of it is punctuation."""
    if not {"+", "@"} & set(base + adapter):
        return f"{base}+{adapter}"
    return {"model": {"path": base}, "lora": {"path": adapter}}


def _title(kind: str, schedule: str, models: Sequence[Any]) -> str:
    how = f"schedule {schedule}" if kind == "schedule" else f"given {kind}"
    return f"Average of {len(models)} checkpoints, {how}"


def _items(models: Sequence[Any], weights: Sequence[float]) -> list[dict[str, Any]]:
    return [{"model": m, "parameters": {"weight": w}} for m, w in zip(models, weights, strict=True)]
