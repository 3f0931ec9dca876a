"""Fixtures of the plan tests: a family of tiny models, and plans of recipes over them."""

from __future__ import annotations

import pytest
from tiny_models import make_tensors, save_model

from fastmerge.plan import make_plan
from fastmerge.recipe import load


@pytest.fixture
def family(tmp_path, monkeypatch):
    """Fine-tunes ``a``, ``b``, ``c`` of ``base`` (four layers) in the current folder. Returns the base's tensors."""
    monkeypatch.chdir(tmp_path)
    base = make_tensors(layers=4)
    save_model("base", base)
    for i, name in enumerate("abc"):
        save_model(name, make_tensors(seed=i + 1, base=base), shards=i + 1)
    return base


@pytest.fixture
def plan_of():
    """A function from recipe text to its plan."""

    def plan(text: str, **options):
        return make_plan(load(text.strip() + "\n# end\n"), **options)

    return plan
