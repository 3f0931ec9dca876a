"""The numbers of a merge's report, as plain values for programs and for the text of the page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ..analysis.summary import plain
from ..engine import Report
from ..plan.types import OutputTensor
from .effects import Effect, add_effects, add_moves
from .measuring import Account, Measured

__all__ = ["SCHEMA", "by_cell", "parameters_of", "summarize"]

SCHEMA = 1
MERGED = "the merge"


def summarize(account: Account, output: str, versions: Mapping[str, str], report: Report | None) -> dict[str, Any]:
    """Return the numbers; what does not exist is None.

    Args:
        output:   name of its folder.
        versions: that made it, as its manifest has them.
        report:   of the run; None where it is not known.
    """
    plan = account.plan
    summary: dict[str, Any] = {
        "schema": SCHEMA,
        "output": output,
        "method": plan.method,
        "semantics": plan.semantics,
        "seed": plan.seed,
        "recipe": plan.recipe,
        "plan": plan.digest,
        "versions": dict(versions),
        "models": [
            {"label": label, "model": own.reference, "folder": own.folder, "bytes": sum(f.nbytes for f in own.files)}
            for label, own in zip(account.labels, plan.models, strict=True)
        ],
        "tensors": {
            "total": len(plan.outputs),
            "merged": sum(output.group is not None for output in plan.outputs),
            "copied": sum(output.group is None for output in plan.outputs),
            "measured": sum(item.moved is not None for item in account.tensors),
            "left_out": len(plan.dropped),
        },
        "bytes": plan.bytes_written,
        "moved": _moved(account),
        "effects": list(_of_models(account, based=True)),
        "effects_without_base": list(_of_models(account, based=False)),
        "run": None if report is None else _run(report),
        "notes": [*plan.notes, *(report.notes if report is not None else ())],
    }  # fmt: skip
    return plain(summary)


def by_cell(account: Account, based: bool) -> dict[tuple[str, int], list[Measured]]:
    """Return what was measured with a base, or without, by module and layer."""
    cells: dict[tuple[str, int], list[Measured]] = {}
    for item in account.tensors:
        pair = item.pair
        if item.moved is not None and pair.layer is not None and (pair.base is not None) == based:
            cells.setdefault((pair.module, pair.layer), []).append(item)
    return cells


def parameters_of(output: OutputTensor) -> dict[str, str]:
    """Return the parameters of a tensor as texts, those of each model between commas; none of a copy."""
    values = {} if output.group is None else output.group.values
    return {name: _show(value) for name, value in values.items() if value is not None}


def _show(value: Any) -> str:
    if isinstance(value, list | tuple):
        shown = [_show(item) for item in value]
        return shown[0] if len(set(shown)) == 1 else ", ".join(shown)
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _moved(account: Account) -> dict[str, Any] | None:
    found = [item.moved for item in account.tensors if item.moved is not None and item.pair.base is not None]
    if not found:
        return None
    total = add_moves(found)
    return {
        "norm": total.norm, "relative_norm": total.relative_norm, "density": total.density,
        "base_norm": math.sqrt(total.base), "tensors": len(found),
    }  # fmt: skip


def _of_models(account: Account, based: bool) -> Iterable[dict[str, Any]]:
    """Yield what became of every model that took part in tensors with a base, or in those without."""
    found = account.effects(based)
    counts = Counter(model for _, model, _ in found)
    for model in sorted(counts):
        mine = [(item, effect) for item, index, effect in found if index == model]
        total = add_effects(effect for _, effect in mine)
        values: dict[str, Any] = {
            "label": account.labels[model],
            "model": account.plan.models[model].reference,
            "tensors": counts[model],
            "norm": total.norm,
            "cosine": total.cosine,
        }
        if based:
            base = math.fsum(item.moved.base for item, _ in mine if item.moved is not None)
            values |= _of_deltas(total, base)
        else:
            values |= {"distance": total.distance}
        yield values


def _of_deltas(total: Effect, base: float) -> dict[str, Any]:
    return {
        "relative_norm": total.norm / math.sqrt(base) if base else math.nan,
        "density": total.changed / total.elements if total.elements else math.nan,
        "kept": total.kept,
        "same_direction": total.same_direction,
        "reversed": total.reversed,
    }


def _run(report: Report) -> dict[str, Any]:
    return {
        "bytes_read": report.bytes_read,
        "bytes_written": report.bytes_written,
        "seconds": report.seconds,
        "cpu_seconds": report.cpu_seconds,
        "bound_seconds": report.bound_seconds,
        "bounded_by": report.bounded_by,
        "distance": report.distance,
        "peak_rss": report.peak_rss,
        "peak_vram": report.peak_vram,
        "threads": report.threads,
        "devices": list(report.devices),
        "device_reason": report.device_reason,
        "resumed": report.resumed,
    }
