"""``fastmerge methods``: the registry as a table, and one method in full."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._errors import Command
from ._options import JSON
from ._output import print_json, print_table

if TYPE_CHECKING:
    from ..methods import Method, Parameter
    from ..methods._blocks import Block

PARAMETER_COLUMNS = ("parameter", "type", "default", "range", "one per", "meaning")
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
    """List the merge methods, or describe the one (or the block: lines, boost) called NAME."""
    from ..functional import find_method
    from ..methods import BLOCKS, all_methods

    if name in BLOCKS:
        _describe_block(BLOCKS[name], as_json)
        return
    chosen = all_methods() if name is None else {name: find_method(name)}
    if as_json:
        print_json([_values(method) for method in chosen.values()])
    elif name is not None:
        _describe(chosen[name])
    elif update is not None:
        update.write_text(with_table(update.read_text()))
    else:
        print_table(COLUMNS, [_row(method) for method in chosen.values()])
        for block in BLOCKS:
            click.echo(f"{block}: can be added to {', '.join(_takers(block))}; see fastmerge methods {block}")


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
    if method.parameters:
        print_table(PARAMETER_COLUMNS, map(_parameter_row, method.parameters))
    if blocks := _blocks(method):
        click.echo(f"blocks that a recipe may add: {', '.join(blocks)}")


def _describe_block(block: Block, as_json: bool) -> None:
    """Describe a block, with the methods that take it."""
    parameters = [replace(p, name=p.name.removeprefix(f"{block.name}.")) for p in block.parameters]
    if as_json:
        values = {"name": block.name, "doc": inspect.getdoc(block), "paper": block.paper}
        print_json(values | {"parameters": [_parameter(p) for p in parameters], "methods": _takers(block.name)})
        return
    click.echo(f"{block.name}\n\n{inspect.getdoc(block)}\n\nmethods: {', '.join(_takers(block.name))}")
    click.echo(f"source: {block.paper}\n")
    print_table(PARAMETER_COLUMNS, map(_parameter_row, parameters))


def _takers(block: str) -> list[str]:
    """Return the methods that a block can be added to."""
    from ..methods import all_methods, why_not

    return [name for name, method in all_methods().items() if why_not(method, block) is None]


def _blocks(method: Method) -> list[str]:
    """Return the blocks that a method takes."""
    from ..methods import BLOCKS, why_not

    return [block for block in BLOCKS if why_not(method, block) is None]


def _parameter_row(p: Parameter) -> tuple[str, ...]:
    return p.name, p.kind.__name__, "required" if _required(p) else _show(p.default), _range(p), _scope(p), p.doc


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
        "parameters": [_parameter(p) for p in method.parameters],
        "blocks": _blocks(method),
    }


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "kind": parameter.kind.__name__,
        "required": _required(parameter),
        "default": None if _required(parameter) else parameter.default,
        "per_model": parameter.per_model,
        "minimum": parameter.minimum,
        "maximum": parameter.maximum,
        "doc": parameter.doc,
    }
