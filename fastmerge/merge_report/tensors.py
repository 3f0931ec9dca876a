"""What happened to each tensor, as tables: by module, one by one, and what was left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..pages import Section, Table, percent
from .measuring import Account, Measured
from .summary import parameters_of

__all__ = ["MOST_ROWS", "cut", "of_tensors"]

# Rows of a table that a page holds; the CSV file holds all.
MOST_ROWS = 2000

Common = dict[str, set[tuple[str, str]]]


def of_tensors(account: Account) -> Section:
    """Return the section on the tensors of the output and on those of the inputs that it lacks."""
    common: Common = {}
    for item in account.tensors:
        given = set(parameters_of(item.pair.output).items())
        common[item.pair.output.method] = common.get(item.pair.output.method, given) & given
    each = [
        (
            item.pair.output.name, item.pair.output.method, _sources(account, item), str(item.pair.output.dtype),
            _own(item, common), "x".join(map(str, item.pair.output.shape)), _change(item),
        )
        for item in account.tensors
    ]  # fmt: skip
    names = ("tensor", "what was done", "of", "dtype", "parameters of its own", "shape", "moved from the base")
    tables = [_by_module(account, each), _table(names, each, f"All {len(each)} tensors", words=5, folded=True)]
    left = [(account.plan.models[item.model].reference, item.name, item.reason) for item in account.plan.dropped]
    if left:
        caption = f"{len(left)} tensors of the inputs were left out"
        tables.append(_table(("model", "tensor", "why"), left, caption, words=3, folded=True))
    texts = [f"{method}: {_joined(sorted(given))}" for method, given in sorted(common.items()) if given]
    text = f"Parameters that all tensors of a method have: {'. '.join(texts)}." if texts else ""
    return Section("What happened to each tensor", text, tables=tables)


def cut(caption: str, rows: int) -> str:
    """Return the caption of a table of which a page holds ``MOST_ROWS``."""
    return f"{caption} (the first {MOST_ROWS}; report.csv holds all)" if rows > MOST_ROWS else caption


def _by_module(account: Account, each: Sequence[tuple[str, ...]]) -> Table:
    groups: dict[tuple[str, str, str], list[tuple[str, ...]]] = {}
    # By number of the layer: names have 10 before 9.
    paired = sorted(zip(account.tensors, each, strict=True), key=lambda pair: pair[0].pair.layer or 0)
    for item, row in paired:
        groups.setdefault((item.pair.module, row[1], row[3]), []).append(row)
    rows = [
        (module, method, _spread(row[2].partition(": ")[0] for row in mine), dtype, _spread(row[4] for row in mine),
         str(len(mine)))
        for (module, method, dtype), mine in sorted(groups.items())
    ]  # fmt: skip
    head = ("module", "what was done", "of", "dtype", "parameters of its own", "tensors")
    return _table(head, rows, "By module, all layers together:", words=5)


def _spread(values: Iterable[str]) -> str:
    """Return different texts in their order; of many the ends."""
    found = [value for value in dict.fromkeys(values) if value]
    return " | ".join(found) if len(found) < 3 else f"{found[0]} ... {found[-1]} ({len(found)} different)"


def _own(item: Measured, common: Common) -> str:
    output = item.pair.output
    return _joined(pair for pair in parameters_of(output).items() if pair not in common[output.method])


def _sources(account: Account, item: Measured) -> str:
    """Return of which models a tensor is made, and of which tensor where that has another name."""
    pair = item.pair
    models = dict.fromkeys(tensor.model for tensor in pair.output.inputs.every)
    if len(models) == len(account.labels) > 1:
        return "all models"
    names = {tensor.name for tensor in pair.output.inputs.every} - {pair.output.name}
    text = ", ".join(account.labels[model] for model in models)
    return f"{text}: {', '.join(sorted(names))}" if names else text


def _change(item: Measured) -> str:
    if item.pair.output.group is None:
        return ""
    moved = item.moved if item.pair.base is not None else None
    return item.why or (percent(moved.relative_norm) if moved is not None else "")


def _joined(parameters: Iterable[tuple[str, str]]) -> str:
    return "; ".join(f"{name} {value}" for name, value in parameters)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, words: int, folded: bool = False) -> Table:
    """Return a table without its empty columns."""
    used = [k for k in range(len(head)) if any(row[k] for row in rows)]
    kept = [[row[k] for k in used] for row in rows[:MOST_ROWS]]
    return Table([head[k] for k in used], kept, cut(caption, len(rows)), folded, sum(k < words for k in used))
