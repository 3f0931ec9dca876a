"""What ``fastmerge methods`` prints: a list with a line for each, and one method or block in full."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ._output import print_table
from ._text import show_doc, wrapped

if TYPE_CHECKING:
    from ..methods import Block, Method, Parameter


def show_list(methods: Iterable[Method], blocks: Iterable[str]) -> None:
    """Print a line for each method: its name, what it does, and whose it is."""
    rows = [(method.name, method.summary or formula(method), _short(method.paper)) for method in methods]
    print_table(("method", "what it does", "source"), rows)
    click.echo(wrapped("fastmerge methods NAME shows formula, parameters and an example recipe."))
    click.echo(wrapped(f"Blocks that change merged deltas: {', '.join(blocks)}; they are shown the same way."))


def show_method(method: Method, blocks: list[str]) -> None:
    """Print all that is known of a method."""
    from ..recipe.example import example_recipe

    head = f"{method.name}: {method.summary}" if method.summary else method.name
    _show(
        head,
        method,
        {
            "base": method.base,
            "models": count(method.inputs),
            "semantics": ", ".join(method.semantics),
            "blocks": ", ".join(blocks) or "none",
            "source": method.paper,
        },
        method.parameters,
        example_recipe(method),
    )


def show_block(block: Block, parameters: Iterable[Parameter], takers: list[str]) -> None:
    """Print all that is known of a block."""
    from ..methods import find_method
    from ..recipe.example import example_recipe

    example = example_recipe(find_method(takers[0] if "task_arithmetic" not in takers else "task_arithmetic"), block)
    facts = {"methods": ", ".join(takers), "source": block.paper}
    _show(f"{block.name}: a block of a recipe", block, facts, parameters, example)


def _show(
    head: str, described: Method | Block, facts: dict[str, str], parameters: Iterable[Parameter], example: str
) -> None:
    click.echo(f"{head}\n")
    show_doc(inspect.getdoc(described) or "")
    click.echo()
    for name, value in facts.items():
        click.echo(wrapped(f"{name}: {value}", hanging="  "))
    click.echo()
    parameters = list(parameters)
    if parameters:
        click.echo("parameters")
        for parameter in parameters:
            _show_parameter(parameter, getattr(described, "semantics", ()))
        click.echo()
    click.echo("example\n" + "".join(f"  {line}\n" for line in example.splitlines()), nl=False)


def _show_parameter(p: Parameter, semantics: Sequence[str]) -> None:
    default = "required" if required(p) else f"default {shown(p.default) or 'none'}"
    value_range = f", {limits(p)}" if limits(p) else ""
    per = ", one per model" if p.per_model else ""
    click.echo(wrapped(f"{p.name}: {p.kind.__name__}{value_range}, {default}{per}", "  ", "      "))
    click.echo(wrapped(meaning(p, semantics), "      "))


def meaning(p: Parameter, semantics: Sequence[str] = ()) -> str:
    """Return what a parameter means, and which of the method's ``semantics`` know it or have another default."""
    remarks = []
    if p.semantics and not set(semantics) <= set(p.semantics):
        remarks.append(f"only with semantics {', '.join(p.semantics)}")
    for value in dict.fromkeys(value for _, value in p.defaults):
        names = ", ".join(name for name, own in p.defaults if own == value)
        remarks.append(f"default {shown(value)} with semantics {names}")
    return f"{p.doc} ({'; '.join(remarks)})" if remarks else p.doc


def _short(paper: str) -> str:
    """Return whose method it is in two words: the first author and the year, or the tool."""
    if match := re.match(r"(mergekit|PEFT) \(", paper):
        return match[1]
    match = re.match(r"(\w+).*?(\d{4})", paper)
    return f"{match[1]} {match[2]}" if match else paper


def formula(described: Method | Block) -> str:
    """Return the first line of the docstring, without the citation that follows the formula."""
    first = (inspect.getdoc(described) or "").split("\n", 1)[0]
    return first.split("   (")[0]


def count(inputs: tuple[int, int | None]) -> str:
    """Return a number of models in words."""
    least, greatest = inputs
    if greatest is None:
        return f"{least} or more"
    return str(least) if least == greatest else f"{least} to {greatest}"


def limits(parameter: Parameter) -> str:
    """Return the values that a parameter takes, or nothing where every one will do."""
    if parameter.choices:
        return ", ".join(parameter.choices)
    low, high = parameter.minimum, parameter.maximum
    if low is None and high is None:
        return ""
    return f"{'' if low is None else f'{low:g}'} .. {'' if high is None else f'{high:g}'}".strip()


def required(parameter: Parameter) -> bool:
    """Return whether a recipe must set a parameter."""
    from ..methods import REQUIRED

    return parameter.default is REQUIRED


def shown(value: Any) -> str:
    """Return a value as YAML has it."""
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
