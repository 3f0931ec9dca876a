"""``fastmerge plan --explain``: one tensor after the other, as text or as JSON."""

from __future__ import annotations

from typing import Any

import click

from ..errors import InvalidInput, Problem
from ._output import print_facts, print_json
from ._planning import Planned


def show_explanations(found: Planned, pattern: str) -> None:
    """Print what is done to every tensor that ``pattern`` names, in every step."""
    from ..plan.explain import explain

    pairs = zip(found.pipeline.steps, found.plans, strict=True)
    steps = [(step.name, list(explain(plan, pattern))) for step, plan in pairs]
    if not any(items for _, items in steps):
        what = f"{pattern!r} is in no tensor's name"
        raise InvalidInput([Problem("--explain", what, "give a name, a part of it, or a pattern with *")])
    if found.options["as_json"]:
        several = len(steps) > 1
        print_json([item | ({"step": name} if several else {}) for name, items in steps for item in items])
        return
    for name, items in steps:
        if items and name and len(steps) > 1:
            click.echo(f"{name}:")
        for item in items:
            _show(item)


def _show(item: dict[str, Any]) -> None:
    click.echo(item["name"])
    if "dropped" in item:
        print_facts([("  dropped", f"{item['dropped']} ({item['model']})")])
        return
    out = item["output"]
    through = f", rounded to {out['rounded_first_to']} first" if out["rounded_first_to"] else ""
    facts = [
        ("  method", f"{item['method']} (semantics: {item['semantics']})"),
        ("  said by", item["said_by"]),
        ("  depth", f"{item['depth']:g}"),
    ]
    if item["parameters"]:
        facts.append(("  parameters", _parameters(item["parameters"])))
    if item["copied_from"]:
        facts.append(("  result", f"a copy of {item['copied_from']}"))
    if item["base"]:
        facts.append(("  base", _source(item["base"])))
    facts += [(f"  model {k + 1}", _source(source)) for k, source in enumerate(item["sources"])]
    facts.append(("  output", f"{out['dtype']} {out['shape']} in {out['file']}{through}"))
    print_facts(facts)


def _source(source: dict[str, Any]) -> str:
    dtype = source["decoded_from"] or source["dtype"]
    more = [f"{source['adapters']} adapter(s) added"] if source["adapters"] else []
    more += [f"rounded to {source['rounded_to']}"] if source["rounded_to"] else []
    more += [_parameters(source["parameters"])] if source["parameters"] else []
    return "; ".join([f"{source['model']}: {source['tensor']} ({dtype})", *more])


def _parameters(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in values.items())


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
