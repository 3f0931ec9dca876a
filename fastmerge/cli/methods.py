"""``fastmerge methods``: the registry as a table, and one method in full."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._errors import Command
from ._options import JSON
from ._output import print_json, print_table

if TYPE_CHECKING:
    from ..methods import Method, Parameter

COLUMNS = ("method", "formula", "base", "models", "parameters", "source")


@click.command(cls=Command)
@click.argument("name", required=False)
@click.option(
    "--update",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Write the table between the markers of a Markdown file.",
)
@JSON
def methods(name: str | None, update: Path | None, as_json: bool) -> None:
    """List the merge methods, or describe the one called NAME."""
    from ..functional import find_method
    from ..methods import all_methods

    chosen = all_methods() if name is None else {name: find_method(name)}
    if as_json:
        print_json([_values(method) for method in chosen.values()])
    elif name is not None:
        _describe(chosen[name])
    elif update is not None:
        update.write_text(with_table(update.read_text()))
    else:
        print_table(COLUMNS, [_row(method) for method in chosen.values()])


def with_table(text: str) -> str:
    """Return a Markdown text with the table of all methods between its markers."""
    from ..methods import all_methods

    before, marker, rest = text.partition("<!-- methods: begin -->\n")
    _, end, after = rest.partition("<!-- methods: end -->")
    if not end:
        raise click.UsageError("the file lacks the lines <!-- methods: begin --> and <!-- methods: end -->")
    return f"{before}{marker}\n{_markdown(all_methods())}\n{end}{after}"


def _markdown(chosen: dict[str, Method]) -> str:
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for method in chosen.values():
        name, formula, base, models, parameters, source = (cell.replace("|", "\\|") for cell in _row(method))
        rows.append((f"`{name}`", f"`{formula}`" if "=" in formula else formula, base, models, parameters, source))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(method: Method) -> tuple[str, ...]:
    return (
        method.name,
        _formula(method),
        method.base,
        _count(method.inputs),
        ", ".join(f"{p.name}" + ("" if _required(p) else f"={_show(p.default)}") for p in method.parameters),
        method.paper,
    )


def _formula(method: Method) -> str:
    """Return the first line of the docstring, without the citation that follows the formula."""
    first = (inspect.getdoc(method) or "").split("\n", 1)[0]
    return first.split("   (")[0]


def _count(inputs: tuple[int, int | None]) -> str:
    least, greatest = inputs
    if greatest is None:
        return f"{least} or more"
    return str(least) if least == greatest else f"{least} to {greatest}"


def _describe(method: Method) -> None:
    click.echo(f"{method.name}\n\n{inspect.getdoc(method)}\n")
    click.echo(f"base: {method.base}; models: {_count(method.inputs)}; semantics: {', '.join(method.semantics)}")
    click.echo(f"source: {method.paper}\n")
    rows = [
        (p.name, p.kind.__name__, "required" if _required(p) else _show(p.default), _range(p), _scope(p), p.doc)
        for p in method.parameters
    ]
    if rows:
        print_table(("parameter", "type", "default", "range", "one per", "meaning"), rows)


def _range(parameter: Parameter) -> str:
    low, high = parameter.minimum, parameter.maximum
    if low is None and high is None:
        return ""
    return f"{'' if low is None else f'{low:g}'} .. {'' if high is None else f'{high:g}'}".strip()


def _scope(parameter: Parameter) -> str:
    return "model" if parameter.per_model else "merge"


def _required(parameter: Parameter) -> bool:
    from ..methods import REQUIRED

    return parameter.default is REQUIRED


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _values(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "doc": inspect.getdoc(method),
        "base": method.base,
        "inputs": method.inputs,
        "semantics": method.semantics,
        "paper": method.paper,
        "parameters": [
            {
                "name": p.name,
                "kind": p.kind.__name__,
                "required": _required(p),
                "default": None if _required(p) else p.default,
                "per_model": p.per_model,
                "minimum": p.minimum,
                "maximum": p.maximum,
                "doc": p.doc,
            }
            for p in method.parameters
        ],
    }
