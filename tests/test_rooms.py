"""The order of the rooms: nothing is imported upward, in a circle, or through a private door."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import fastmerge

ROOT = Path(fastmerge.__file__).resolve().parents[1]

# From the ground up: a room may use those before it. The root is the public API; its rooms come last.
ROOMS = (
    "errors", "sizes", "arguments", "results", "progress", "dtypes", "kernels", "devices", "steps", "checkpoint",
    "methods", "recipe", "plan", "engine", "sharded", "tensors", "functional", "state_dicts", "pages", "analysis",
    "merge_report", "pipelines", "api", "schedules", "averaging", "training", "extraction", "conversion", "adapters",
    "emr", "statistics", "reports", "hub", "integrations", "demo", "cli", "__main__",
)  # fmt: skip
# What the root holds for all: its version, and the extensions that are built into it.
OF_THE_ROOT = {"__version__", "_C", "_cuda"}


class Import(NamedTuple):
    """One name that a module imports from another one; ``late`` when that is not done as the module is loaded."""

    by: str
    module: str
    name: str
    late: bool

    @property
    def rooms(self) -> tuple[str, str]:
        return room_of(self.by), room_of(self.module)

    def __str__(self) -> str:
        return f"{self.by} imports {self.name} of {self.module}"


def room_of(module: str) -> str:
    """Return the part of a module's name behind the root's; the root's own name is ``fastmerge``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def modules() -> dict[str, Path]:
    """Return the file of every module of the package; ``kernels`` lies beside it in the repository."""
    found = {}
    for path in [*(ROOT / "fastmerge").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "fastmerge" else ("fastmerge", *parts)
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


FILES = modules()


def imports_of(module: str) -> Iterator[Import]:
    path = FILES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(path.read_text())
    late = {id(inner) for outer in ast.walk(tree) if is_late(outer) for inner in ast.walk(outer)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name, "", id(node) in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inside = f"{source}.{alias.name}"
                yield Import(module, inside if inside in FILES else source, alias.name, id(node) in late)


def is_late(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))


IMPORTS = [found for module in FILES for found in imports_of(module) if found.module in FILES]


def test_every_room_has_its_place():
    rooms = {room_of(module) for module in FILES} - {"fastmerge"}
    assert rooms == set(ROOMS), "give a new room its place in ROOMS"
    assert len(IMPORTS) > 500


def test_nothing_is_imported_upward():
    order = {room: i for i, room in enumerate(ROOMS)}
    upward = [
        found for found in IMPORTS
        if "fastmerge" not in found.rooms and order[found.rooms[1]] > order[found.rooms[0]]
    ]  # fmt: skip
    upward += [
        found for found in IMPORTS
        if found.module == "fastmerge" != found.by and found.name not in OF_THE_ROOT
    ]  # fmt: skip
    assert not upward, "\n".join(map(str, upward))


def test_no_modules_import_each_other():
    graph: dict[str, set[str]] = {module: set() for module in FILES}
    for found in IMPORTS:
        if not found.late and found.module != found.by:
            graph[found.by].add(found.module)
    list(TopologicalSorter(graph).static_order())


def test_no_private_name_of_another_room():
    private = [
        found for found in IMPORTS
        if found.rooms[0] != found.rooms[1] and found.name not in OF_THE_ROOT
        and any(part.startswith("_") for part in (*found.module.split("."), found.name))
    ]  # fmt: skip
    assert not private, "\n".join(map(str, private))


def test_the_root_has_public_names_alone():
    assert dir(fastmerge) == sorted([*fastmerge.__all__, "__version__"])
    for name in dir(fastmerge):
        assert getattr(fastmerge, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'merg'"):
        _ = fastmerge.merg
