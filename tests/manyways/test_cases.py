"""A short form of ``python -m tests.manyways``: cases that follow from fixed seeds, so that every run does the same."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from random import Random

import pytest
import torch

pytestmark = [
    pytest.mark.compiled,  # of which the budgets are
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:.*TypedStorage is deprecated"),
]


@pytest.fixture(scope="module")
def ways():
    """The package, whose modules import each other by their place in the repository."""
    root, threads = str(Path(__file__).resolve().parents[2]), torch.get_num_threads()
    sys.path.insert(0, root)
    torch.set_num_threads(1)  # the last bits of decompositions depend on it
    try:
        yield importlib.import_module("tests.manyways.ways"), importlib.import_module("tests.manyways.cases")
    finally:
        torch.set_num_threads(threads)
        sys.path.remove(root)


@pytest.mark.parametrize("number", range(2))
def test_every_way_gives_the_same_bytes(ways, number, tmp_path):
    doing, making = ways
    rng = Random(f"suite {number}")
    assert list(doing.disagreements(rng, making.make_case(rng, tmp_path))) == []


def test_a_difference_is_seen(ways, tmp_path, monkeypatch):
    doing, making = ways
    rng = Random("suite 0")
    case = making.make_case(rng, tmp_path)
    real = doing.reference

    def wrong(rng, case):
        found = real(rng, case)
        found["model.norm.weight"].view(torch.uint8)[0] ^= 1
        return found

    monkeypatch.setattr(doing, "WAYS", (wrong,))
    (said,) = doing.disagreements(rng, case)
    assert said.startswith("wrong: model.norm.weight: 1 of 16 elements differ")
