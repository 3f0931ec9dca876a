"""YAML text with positions: safe loading, no duplicate keys, and the place of every key for messages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from ..errors import InvalidInput, Problem

KeyPath = tuple[str | int, ...]

# A recipe of a thousand slices has about 20,000 nodes; aliases of aliases expand without limit.
MOST_NODES = 200_000


@dataclass(frozen=True)
class Document:
    """A parsed recipe. ``nodes`` is its YAML tree, or None for a recipe that was given as a dict."""

    name: str
    text: str
    data: Any
    nodes: yaml.Node | None = None

    def position(self, path: KeyPath) -> tuple[int, int] | None:
        """Return line and column of the deepest part of ``path`` that the text holds; None without text."""
        node, mark = self.nodes, None if self.nodes is None else self.nodes.start_mark
        for step in path:
            if isinstance(node, yaml.MappingNode):
                found = next(((key, value) for key, value in node.value if key.value == step), None)
                if found is None:
                    break
                mark, node = found[0].start_mark, found[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                mark = node.start_mark
            else:
                break
        return None if mark is None else (mark.line + 1, mark.column + 1)

    def where(self, path: KeyPath = ()) -> str:
        """Return ``file:line:column: key path``."""
        position = self.position(path)
        place = f"{self.name}:{position[0]}:{position[1]}" if position else self.name
        return f"{place}: {key_path(path)}" if path else place


def place_of(name: str, text: str, value: str) -> str:
    """Return ``file:line:column`` of the first scalar that is ``value``, or ``name`` where there is none.

    ``name`` is the recipe's file, which may hold more documents than ``text``, or stands for the text.
    """
    try:
        if os.path.isfile(name):
            with open(name, encoding="utf-8-sig") as file:
                text = file.read()
        events = list(yaml.parse(text, Loader=_Loader))
    except (OSError, ValueError, yaml.YAMLError):
        return name
    scalars = (event for event in events if isinstance(event, yaml.ScalarEvent) and event.value == value)
    mark = next((event.start_mark for event in scalars), None)
    return f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name


def key_path(path: KeyPath) -> str:
    """Return a path as people write it: ``models[1].parameters.density``."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def read_document(source: str | os.PathLike[str] | dict[str, Any]) -> Document:
    """Read a recipe of one document; as ``read_documents``.

    Raises InvalidInput also where there are several documents.
    """
    documents = read_documents(source)
    if len(documents) > 1:
        what = f"holds {len(documents)} YAML documents; a recipe is one"
        raise _invalid(documents[0].name, what, "merge it with fastmerge merge, or fastmerge.merge")
    return documents[0]


def read_documents(
    source: str | os.PathLike[str] | dict[str, Any], name: str = "<recipe>", made: bool = False
) -> list[Document]:
    """Read the documents of a recipe, one or several, from a file, from YAML text (with a newline), or from a dict.

    ``name`` stands for a text or dict in messages; where a command ``made`` the text, they name no lines of it.

    Raises InvalidInput: no such file, not UTF-8, not YAML, a duplicate key, or no document.
    """
    if isinstance(source, dict):
        return [Document(name, yaml.safe_dump(source, sort_keys=False), source)]
    if isinstance(source, str) and "\n" in source:
        return [replace(each, nodes=None) if made else each for each in parse(name, source)]
    name = os.fspath(source)
    try:
        with open(name, encoding="utf-8-sig") as file:
            return parse(name, file.read())
    except OSError as error:
        raise _invalid(name, f"cannot read the recipe: {error.strerror}", "give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise _invalid(name, "is not UTF-8 text", "give the path of a YAML file") from None


def parse(name: str, text: str) -> list[Document]:
    """Parse the YAML documents of ``text``, at least one; ``name`` stands for it in messages."""
    try:
        # A "---" at the end starts an empty document, which says nothing.
        nodes = [node for node in yaml.compose_all(text, Loader=_Loader) if node.tag != "tag:yaml.org,2002:null"]
        if not nodes:
            raise _invalid(name, "the recipe is empty", "write at least merge_method and models")
        problems = []
        for node in nodes:
            if _expanded(node, {}) > MOST_NODES:
                raise _invalid(name, f"expands to more than {MOST_NODES} YAML nodes", "write it without nested aliases")
            problems += _duplicates(name, node, (), set())
        if problems:
            raise InvalidInput(problems)
        texts = _texts(text, nodes)
        pairs = zip(texts, nodes, strict=True)
        return [Document(name, own, _Loader("").construct_document(node), node) for own, node in pairs]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise _invalid(place, f"is not valid YAML: {what}", _yaml_remedy(text, mark)) from None
    except InvalidInput:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise _invalid(name, f"is not valid YAML: {error}", "check its text") from None
    except RecursionError:
        raise _invalid(name, "is nested too deeply", "a recipe needs about ten levels") from None


def _texts(text: str, nodes: Sequence[yaml.Node]) -> list[str]:
    """Return the text of every document, without the lines that part them; a single one keeps all of it."""
    if len(nodes) == 1:
        return [text]
    lines = text.splitlines(keepends=True)
    marks = [i for i, line in enumerate(lines) if line.rstrip() == "---" or line.startswith("--- ")]
    texts = []
    for node in nodes:
        first = max((mark + 1 for mark in marks if mark < node.start_mark.line), default=0)
        last = min((mark for mark in marks if mark >= max(node.start_mark.line, first)), default=len(lines))
        texts.append("".join(lines[first:last]).strip("\n") + "\n")
    return texts


class _Loader(yaml.SafeLoader):
    """The safe loader without dates, so that a revision such as 2024-01-01 stays text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _expanded(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Return the number of nodes that ``node`` stands for once its aliases are expanded; a cycle counts as too many."""
    if id(node) not in sizes:
        sizes[id(node)] = MOST_NODES + 1
        sizes[id(node)] = 1 + sum(_expanded(child, sizes) for child in _children(node))
    return sizes[id(node)]


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _duplicates(name: str, node: yaml.Node, path: KeyPath, seen: set[int]) -> list[Problem]:
    """Find keys that a mapping holds twice; YAML would silently keep the last."""
    if id(node) in seen:
        return []
    seen.add(id(node))
    problems: list[Problem] = []
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            problems += _duplicates(name, item, (*path, index), seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            here, line = (*path, str(key.value)), key.start_mark.line + 1
            place = f"{name}:{line}:{key.start_mark.column + 1}: {key_path(here)}"
            if isinstance(key, yaml.ScalarNode) and key.value in lines:
                what = f"the key is there twice, first in line {lines[key.value]}"
                problems.append(Problem(place, what, "keep one"))
            lines.setdefault(str(key.value), line)
            problems += _duplicates(name, value, here, seen)
    return problems


def _yaml_remedy(text: str, mark: yaml.Mark | None) -> str:
    lines = text.splitlines()
    broken = lines[mark.line] if mark and mark.line < len(lines) else ""
    if broken.startswith("%"):
        return "delete this line; a recipe does not hold notebook commands"
    if "\t" in broken:
        return "indent with spaces, not with tabs"
    return "check the indentation and the quotes"


def _invalid(where: str, what: str, remedy: str) -> InvalidInput:
    return InvalidInput([Problem(where, what, remedy)])


@dataclass
class Findings:
    """What a check of a document has found so far."""

    document: Document
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, path: KeyPath, what: str, remedy: str = "") -> None:
        self.problems.append(Problem(self.document.where(path), what, remedy))

    def note(self, path: KeyPath, what: str) -> None:
        self.notes.append(f"{self.document.where(path)}: {what}")

    def stop(self) -> None:
        """Raise the problems, if there are any."""
        if self.problems:
            raise InvalidInput(self.problems)
