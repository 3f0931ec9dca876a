"""What the functions of Python return is shown in a line, and as HTML in notebooks."""

from __future__ import annotations

import pytest

import fastmerge
from fastmerge.methods import all_methods


@pytest.mark.parametrize("make", ["check", "inspect", "diff", "list_methods"])
def test_results_are_short(make, ties, models):
    arguments = {"check": [ties], "inspect": [models / "one"], "diff": [models / "one", models / "two"]}
    result = getattr(fastmerge, make)(*arguments.get(make, []))
    assert repr(result).startswith("<") and len(repr(result)) < 200 and "\n" not in repr(result)
    assert str(result) and "<" in result._repr_html_()


def test_what_they_hold(ties, models):
    assert "ties of 4 models: 21 tensors, reads " in repr(fastmerge.check(ties))
    assert fastmerge.inspect(models / "one").layers == {"model.layers": 2}
    difference = fastmerge.diff(models / "one", models / "one")
    assert difference.equal == len(difference.tensors) == 21 and difference.l2 == 0
    assert list(fastmerge.list_methods()) == list(all_methods())


@pytest.mark.parametrize("size", [2.5, None, True])
def test_a_size_that_is_no_size(size, ties, tmp_path):
    with pytest.raises(ValueError, match="give bytes as a whole number, or text such as"):
        fastmerge.merge(ties, tmp_path / "out", ram=size)


def test_a_fraction_says_what_was_meant(ties, tmp_path):
    with pytest.raises(ValueError, match=r"2.5 is not a size; give bytes as a whole number, or text such as '2.5GiB'"):
        fastmerge.merge(ties, tmp_path / "out", ram=2.5)
