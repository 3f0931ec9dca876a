"""Model references."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmerge.recipe import ModelRef
from fastmerge.recipe.references import parse_reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/a", ModelRef("org/a")),
        ("org/a@v1", ModelRef("org/a", "v1")),
        ("org/a+org/l", ModelRef("org/a", lora=ModelRef("org/l"))),
        ("org/a@v1+org/l@v2", ModelRef("org/a", "v1", ModelRef("org/l", "v2"))),
        ({"model": {"path": "a", "revision": "v"}}, ModelRef("a", "v")),
        ({"model": "a@v", "lora": "l", "override_architecture": "X"}, ModelRef("a", "v", ModelRef("l"))),
    ],
)
def test_forms(text: object, expected: ModelRef) -> None:
    assert parse_reference(text) == expected
    assert parse_reference(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x+y", ModelRef("x+y")),
        ("x+y+l", ModelRef("x+y", lora=ModelRef("l"))),
        ("x+y@v+l", ModelRef("x+y", "v", ModelRef("l"))),
        ("p@q", ModelRef("p@q")),
        ("p@q+l", ModelRef("p@q", lora=ModelRef("l"))),
        ("a+x+y", ModelRef("a", lora=ModelRef("x+y"))),
    ],
)
def test_a_folder_that_exists_wins_over_punctuation(
    text: str, expected: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x+y", "p@q"):
        (tmp_path / name).mkdir()
    found = parse_reference(text)
    assert repr(found) == repr(expected)


def test_spellings_of_one_folder_are_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to("base")
    spellings = ["base", "base/", "./base", "other/../base", str(tmp_path / "base"), "link", "base@main"]
    references = [parse_reference(text) for text in spellings]
    assert len({*references}) == 1 and [ref.path for ref in references][:3] == ["base", "base/", "./base"]
    assert references[0] not in (parse_reference("other"), parse_reference("base+other"))
    assert parse_reference("link+other/") == parse_reference("base+./other")
    # From elsewhere the folders are not there, and spellings still agree.
    monkeypatch.chdir(tmp_path / "other")
    assert parse_reference("base/") == parse_reference("./base") == ModelRef("base")
    assert len({parse_reference(text) for text in ("org/a", "org/a@v1", "org/a@v2")}) == 3


@pytest.mark.parametrize("value", ["", " ", "a+", "+l", "a+b+c", "a@", "@v", "a@b@c", 7, {"path": "a"}, {"model": 1}])
def test_what_is_no_reference_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"model"):
        parse_reference(value)
