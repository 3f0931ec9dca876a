"""``fastmerge methods``: the registry as a table, and one method in full."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._errors import Command
from ._method_pages import count, formula, limits, meaning, required, show_block, show_list, show_method, shown
from ._options import JSON, PLUGIN, together
from ._output import print_json

if TYPE_CHECKING:
    from ..methods import Block, Method, Parameter

PARAMETER_COLUMNS = ("parameter", "type", "default", "range", "one per", "meaning")


@click.command(cls=Command)
@click.argument("name", required=False)
@click.option(
    "--update",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Write the tables between the markers of a Markdown file, or functional.pyi; may be given several times.",
)
@together(PLUGIN, JSON)
def methods(name: str | None, update: tuple[Path, ...], as_json: bool) -> None:
    """List the merge methods, or describe the one (or the block: lines, svc, boost) called NAME."""
    from ..methods import BLOCKS, all_methods, find_method

    if name in BLOCKS:
        _describe_block(BLOCKS[name], as_json)
        return
    chosen = all_methods() if name is None else {name: find_method(name)}
    if as_json:
        print_json([_values(method) for method in chosen.values()])
    elif name is not None:
        show_method(chosen[name], _blocks(chosen[name]))
    elif update:
        for path in update:
            path.write_text(_updated(path))
    else:
        show_list(chosen.values(), BLOCKS)


def _updated(path: Path) -> str:
    """Return what a file that lists the methods should hold."""
    if path.name == "functional.pyi":
        from ..reports.stub import functional_stub

        return functional_stub()
    return with_tables(path.read_text())


def with_tables(text: str) -> str:
    """Return a Markdown text with what stands between its markers made anew from the registry.

    ``<!-- methods: begin -->`` is followed by a table with the names of all methods, by what they work on,
    ``<!-- parameters: begin -->`` by a section for every method and block; ``end`` in place of ``begin`` ends them.
    """
    found = False
    for kind, make in (("methods", _table), ("parameters", _sections)):
        before, marker, rest = text.partition(f"<!-- {kind}: begin -->\n")
        _, end, after = rest.partition(f"<!-- {kind}: end -->")
        if marker and end:
            found, text = True, f"{before}{marker}\n{make()}\n{end}{after}"
    if not found:
        raise click.UsageError(
            "the file lacks the lines <!-- methods: begin --> and <!-- methods: end --> (or the same for parameters)"
        )
    return text


def _table() -> str:
    """Return a Markdown table of the names of all methods, by what they work on."""
    from ..methods import all_methods

    rows: dict[str, list[str]] = {}
    for method in all_methods().values():
        rows.setdefault(_works_on(method), []).append(f"`{method.name}`")
    return _markdown(("works on", "methods"), [(what, ", ".join(names)) for what, names in sorted(rows.items())])


def _works_on(method: Method) -> str:
    if any(p.name == "matrices" for p in method.parameters):
        return "singular values of deltas"
    if method.base != "required":
        return "models, no base needed"
    return "a base and one model" if method.inputs[1] == 1 else "a base and models"


def _sections() -> str:
    """Return a Markdown section for every method and block, with its parameters."""
    from ..methods import BLOCKS, all_methods

    methods = [(m.name, formula(m), _needs(m), m.parameters, m.semantics) for m in all_methods().values()]
    blocks = [(b.name, formula(b), f"A block. {b.paper}.", _own_parameters(b), ()) for b in BLOCKS.values()]
    sections = []
    for name, text, needs, parameters, semantics in (*methods, *blocks):
        rows = [_parameter_row(p, semantics) for p in parameters]
        table = "\n" + _markdown(PARAMETER_COLUMNS, rows) if rows else ""
        sections.append(f"## {name}\n\n{_code(text)}\n\n{needs}\n{table}")
    return "\n".join(sections)


def _needs(method: Method) -> str:
    """Return one line on what a method takes."""
    base = {"required": "Needs a base", "optional": "Takes a base", "ignored": "Takes no base"}[method.base]
    text = f"{base}; models: {count(method.inputs)}; semantics: {', '.join(method.semantics)}."
    if blocks := _blocks(method):
        text += f" Blocks: {', '.join(blocks)}."
    return f"{text} {method.paper}."


def _code(formula: str) -> str:
    return f"`{formula}`" if "=" in formula else formula


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ("---",) * len(columns), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _describe_block(block: Block, as_json: bool) -> None:
    """Describe a block, with the methods that take it."""
    parameters = _own_parameters(block)
    if as_json:
        values = {"name": block.name, "doc": inspect.getdoc(block), "paper": block.paper}
        print_json(values | {"parameters": [_parameter(p) for p in parameters], "methods": _takers(block.name)})
        return
    show_block(block, parameters, _takers(block.name))


def _own_parameters(block: Block) -> list[Parameter]:
    """Return the parameters of a block as they are named inside it."""
    return [replace(p, name=p.name.removeprefix(f"{block.name}.")) for p in block.parameters]


def _takers(block: str) -> list[str]:
    """Return the methods that a block can be added to."""
    from ..methods import all_methods, why_not

    return [name for name, method in all_methods().items() if why_not(method, block) is None]


def _blocks(method: Method) -> list[str]:
    """Return the blocks that a method takes."""
    from ..methods import BLOCKS, why_not

    return [block for block in BLOCKS if why_not(method, block) is None]


def _parameter_row(p: Parameter, semantics: Sequence[str]) -> tuple[str, ...]:
    return (
        p.name,
        p.kind.__name__,
        "required" if required(p) else shown(p.default),
        limits(p),
        _scope(p),
        meaning(p, semantics),
    )


def _scope(parameter: Parameter) -> str:
    return "model" if parameter.per_model else "merge"


def _values(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "doc": inspect.getdoc(method),
        "base": method.base,
        "inputs": method.inputs,
        "semantics": method.semantics,
        "summary": method.summary,
        "paper": method.paper,
        "parameters": [_parameter(p) for p in method.parameters],
        "blocks": _blocks(method),
    }


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "kind": parameter.kind.__name__,
        "required": required(parameter),
        "default": None if required(parameter) else parameter.default,
        "per_model": parameter.per_model,
        "minimum": parameter.minimum,
        "maximum": parameter.maximum,
        "semantics": parameter.semantics,
        "defaults": dict(parameter.defaults),
        "doc": parameter.doc,
    }
