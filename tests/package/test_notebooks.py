"""What functions show while they work: bars in notebooks and on terminals, lines in pipes, and the log."""

from __future__ import annotations

import importlib
import logging
import sys
import types

import pytest
from tiny_models import save_family

import fastmerge
from fastmerge import progress
from fastmerge.averaging import GreedySoup, Trial
from fastmerge.results import Result


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return save_family(tmp_path_factory.mktemp("family"))


@pytest.fixture
def recipe(family):
    models = [{"model": str(family / name), "parameters": {"weight": 0.5}} for name in ("one", "two")]
    return {"merge_method": "linear", "models": models}


@pytest.fixture
def notebook(monkeypatch):
    """A kernel's IPython, with what its display shows: one HTML text per drawing, by handle."""
    drawn: list[list[str]] = []

    class Handle:
        def update(self, shown):
            drawn[-1].append(shown)

    def display(shown, display_id):
        assert display_id is True
        drawn.append([shown])
        return Handle()

    ipython, parts = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    parts.HTML, parts.display = str, display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", parts)
    return drawn


def test_a_notebook_has_a_bar_unless_it_is_turned_off(recipe, family, notebook, tmp_path):
    report = fastmerge.merge(recipe, tmp_path / "one")
    (bar,) = notebook
    assert bar[-1].startswith("<div>merging <progress value=") and " of " in bar[-1] and " in " in bar[-1]
    assert report.tensors == 21
    fastmerge.merge(recipe, tmp_path / "two", progress=False)
    told = []
    fastmerge.verify(tmp_path / "two", progress=lambda *now: told.append(now))
    assert len(notebook) == 1 and told[-1][0] == told[-1][1]
    fastmerge.verify(tmp_path / "two")
    fastmerge.analyze([str(family / "one")], str(family / "base"), tmp_path / "report")
    fastmerge.extract(family / "base", family / "one", tmp_path / "adapter", rank=2)
    assert [bar[-1].split(" ")[0] for bar in notebook[1:]] == ["<div>verifying", "<div>reading", "<div>extracting"]
    assert all('value="0"' not in bar[-1] for bar in notebook)


def test_without_a_notebook_there_is_a_bar_only_where_it_is_asked_for(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    fastmerge.merge(recipe, tmp_path / "one")
    assert capsys.readouterr() == ("", "")
    with progress.shown(True, "merging") as update:
        update(500, 1000)
    assert capsys.readouterr().err.startswith("merging: 500 B of 1 kB (50 %), ")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.shown(True, "merging") as update:
        update(500, 1000)
    assert "merging" in capsys.readouterr().err


def test_the_log_says_what_is_done(recipe, tmp_path, caplog):
    out = tmp_path / "out"
    with caplog.at_level(logging.INFO, logger="fastmerge"):
        report = fastmerge.merge(recipe, out)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("fastmerge")]
    assert said[0].startswith("linear of 2 models: 21 tensors, reads ") and said[0].endswith(f" into {out}")
    assert said[-1] == f"{out}: {report}"
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_every_function_returns_a_result(recipe, family, tmp_path):
    base, one = str(family / "base"), str(family / "one")
    found = {
        "plan": fastmerge.plan(recipe),
        "check": fastmerge.check(recipe),
        "methods": fastmerge.methods(),
        "list_methods": fastmerge.list_methods(),
        "inspect": fastmerge.inspect(one),
        "diff": fastmerge.diff(base, one),
        "merge": fastmerge.merge(recipe, tmp_path / "merged"),
        "verify": fastmerge.verify(tmp_path / "merged"),
        "verify_recipe": fastmerge.verify_recipe(recipe, tmp_path / "merged"),
        "average": fastmerge.average([base, one], tmp_path / "mean"),
        "extract": fastmerge.extract(base, one, tmp_path / "adapter", rank=2),
        "analyze": fastmerge.analyze([one], base, tmp_path / "report"),
        "soup": GreedySoup(("a",), 0.5, (Trial(("a",), 0.5, True),)),
    }
    for name, result in found.items():
        assert isinstance(result, Result), name
        line = repr(result)
        assert line.startswith("<") and line.endswith(">") and "\n" not in line and len(line) < 200, name
        page = result._repr_html_()
        assert "<table>" in page and (str(result).split("\n")[0] in page or name.endswith("methods")), name


def test_rooms_that_bear_the_name_of_a_command_are_called_and_imported():
    from fastmerge.plan import make_plan

    assert fastmerge.plan.make_plan is make_plan is importlib.import_module("fastmerge.plan").make_plan
    assert list(fastmerge.methods()) == list(fastmerge.list_methods())
    assert "recipe" in fastmerge.plan.__signature__.parameters
