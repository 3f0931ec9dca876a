"""Filters that match no tensor are named, at every level of a recipe."""

from __future__ import annotations

import pytest

LINEAR = """
merge_method: linear
models:
  - model: a
    parameters: {weight: VALUE}
  - model: b
parameters: {weight: 1}
"""


def notes(plan_of, value, text=LINEAR):
    return plan_of(text.replace("VALUE", value)).notes


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ("filter: mpl", "the filter 'mpl' matches no tensor"),
        ("filter: 'layers\\.[0-9]+\\.mlp'", "(a filter is a part of a name; write glob: or regex: for a pattern)"),
        ("filter: 'model.*'", "'model.*' is a part of no name; patterns are written with glob:"),
        ("glob: 'layers.*'", "the glob 'layers.*' matches no tensor"),
        ("regex: 'layers\\.9'", "the regex 'layers\\\\.9' matches no tensor"),
    ],
)
def test_a_note(family, plan_of, filters, said):
    (note,) = notes(plan_of, f"[{{{filters}, value: 1}}, {{value: 0.5}}]")
    assert said in note and note.startswith("<recipe>:") and "parameters.weight" in note


@pytest.mark.parametrize("filters", ["filter: mlp", "filter: '*'", "glob: '*mlp*'", "regex: 'layers\\.[0-3]'"])
def test_what_matches(family, plan_of, filters):
    assert notes(plan_of, f"[{{{filters}, value: 1}}, {{value: 0.5}}]") == ()


def test_levels(family, plan_of):
    text = """
merge_method: linear
slices:
  - sources:
      - {model: a, layer_range: [0, 4], parameters: {weight: [{filter: one, value: 1}, {value: 1}]}}
      - {model: b, layer_range: [0, 4]}
    parameters: {weight: [{filter: two, value: 1}, {value: 1}]}
parameters: {weight: [{filter: three, value: 1}, {value: 1}]}
rules:
  - {filter: four, merge_method: linear}
"""
    found = notes(plan_of, "", text)
    for name in ("one", "two", "three", "four"):
        assert sum(f"the filter {name!r} matches no tensor" in note for note in found) == 1, name
