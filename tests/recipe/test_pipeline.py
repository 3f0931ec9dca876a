"""Recipes of several documents: their order, their result, and what is wrong with their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from fastmerge.errors import InvalidInput
from fastmerge.recipe import load
from fastmerge.recipe.pipeline import load_pipeline

ONE = "merge_method: linear\nparameters: {weight: 1}\nmodels: [%s]\n"


def documents(*models: str, names: Sequence[str] = "") -> str:
    texts = [ONE % text + (f"name: {name}\n" if name != "-" else "") for text, name in zip(models, names, strict=True)]
    return "---\n".join(texts)


def order(text: str) -> tuple[list[str], str | None]:
    pipeline = load_pipeline(text)
    return [step.name for step in pipeline.steps], pipeline.last and pipeline.last.name


@pytest.mark.parametrize(
    ("text", "steps", "last"),
    [
        (documents("m, n", names="-"), [""], ""),
        (documents("m, n", names="x"), ["x"], "x"),
        (documents("m, n", "x, m", names="x-"), ["x", ""], ""),
        (documents("y, n", "x, m", "m", names="x-y"), ["y", "x", ""], ""),
        (documents("m, n", "x+l, m", "y@v, x", names="xyz"), ["x", "y", "z"], "z"),
        (documents("m", "n", names="xy"), ["x", "y"], None),
        (documents("m", "n", "x", names="x-y"), ["x", "y", ""], ""),
    ],
)
def test_every_document_comes_behind_those_that_it_uses(text: str, steps: list[str], last: str | None) -> None:
    assert order(text) == (steps, last)


def test_texts_of_what_a_document_uses() -> None:
    text = "# about\n---\n" + documents("m, n", "o", "x, y", names="xy-") + "---\n"
    x, y, last = load_pipeline(text).steps
    assert x.text == ONE % "m, n" + "name: x\n" and x.earlier == ()
    assert last.earlier == (x.text, y.text) and last.whole_text == documents("m, n", "o", "x, y", names="xy-")
    assert load_pipeline(last.whole_text).steps[-1].text == last.text


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "r.yml").write_text(
        documents("m", "n", names="x-").replace("weight: 1}\nmodels: [n]", "wight: 1}\nmodels: [n]")
    )
    with pytest.raises(InvalidInput, match=r"r.yml:7:14: parameters.wight: unknown parameter"):
        load_pipeline(tmp_path / "r.yml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (documents("m", "n", names="--"), r"2 documents have no name, at <recipe>:1:1, <recipe>:5:1"),
        (documents("m", "n", "o", names="xx-"), r"<recipe>:6:1: the name 'x' is given twice"),
        (documents("y", "x", "x", names="xy-"), r"documents use each other in a circle: x, y, the last document"),
        (documents("m", "n", names=("a/b", "-")), r"'a/b' is no name for a folder"),
        (documents("m", "n", names=("..", "-")), r"'..' is no name for a folder"),
    ],
)
def test_names_that_do_not_fit(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load_pipeline(text)


def test_one_recipe_is_asked_for() -> None:
    with pytest.raises(InvalidInput, match=r"holds 2 YAML documents; a recipe is one \(merge it with fastmerge merge"):
        load(documents("m", "n", names="x-"))


def test_a_slip_in_the_name_of_a_document() -> None:
    with pytest.raises(InvalidInput, match=r":6:1: uses 'fist', which no document is named \(write first\)"):
        load_pipeline(documents("m, n", "fist, m", names=["first", "-"]))
    assert load_pipeline(documents("m, n", "fist@main, m", names=["first", "-"])).last
