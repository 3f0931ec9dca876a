"""Which checkpoints names and patterns mean, and in which order."""

from __future__ import annotations

import pytest

from fastmerge.averaging import window_of
from fastmerge.errors import InvalidInput


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder with the checkpoints of a run, as the Trainer leaves them; the current folder."""
    for step in (500, 1000, 1500, 2000, 10000):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
    (tmp_path / "run" / "checkpoint-logs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def steps(window) -> list[int]:
    return [int(model.rpartition("-")[2]) for model in window.models]


ALL = [500, 1000, 1500, 2000, 10000]


def test_patterns_are_folders_with_weights_in_the_order_of_their_numbers(run):
    assert steps(window_of(["run/checkpoint-*"])) == ALL
    assert steps(window_of([str(run / "checkpoint-*")])) == ALL
    assert steps(window_of(["run/checkpoint-[12]*"])) == [1000, 1500, 2000, 10000]


def test_what_a_shell_made_of_a_pattern_is_the_same(run):
    names = sorted(f"run/checkpoint-{step}" for step in ALL)
    assert names[0] == "run/checkpoint-1000"
    assert steps(window_of(names)) == ALL
    # But not where something goes with each.
    window = window_of(names, paired=True)
    assert list(window.models) == names and "in the order given" in window.notes[0]
    assert window_of(["run/checkpoint-*"], paired=True).notes == ()


def test_names_of_other_kinds_stay_in_the_order_given():
    names = ["org/b", "org/a", "org/c-7b"]
    assert list(window_of(names).models) == names
    # The number that differs is the step, wherever it stands.
    assert window_of(["s2/hf-8b", "s10/hf-8b", "s1/hf-8b"]).models == ("s1/hf-8b", "s2/hf-8b", "s10/hf-8b")
    assert window_of(["s2/hf-8b", "s10/hf-8b", "s1/hf-8b"], stop=2).models == ("s1/hf-8b", "s2/hf-8b")


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({"last": 2}, [2000, 10000]),
        ({"start": 1000, "stop": 2000}, [1000, 1500, 2000]),
        ({"every": 2}, [500, 1500, 10000]),
        ({"every": 3}, [1000, 10000]),
        ({"stop": 2000, "every": 2, "last": 2}, [1000, 2000]),
        ({"last": 9}, ALL),
    ],
    ids=str,
)
def test_a_choice(run, choice, wanted):
    window = window_of(["run/checkpoint-*"], **choice)
    assert steps(window) == wanted
    assert bool(window.notes) == (choice == {"last": 9})


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["run/step-*"], {}, r"run/step-\*: matches no folder \(check the pattern\)"),
        (["run/checkpoint-*", "run/checkpoint-500/"], {}, r"run/checkpoint-500: is given twice"),
        (["a", "b1"], {"start": 1}, "--from, --to: the names of a, b1 differ in more than numbers"),
        (["run/checkpoint-*"], {"start": 3000, "stop": 4000}, "none of the steps 500, 1000, 1500, 2000, 10000"),
        (["run/checkpoint-*"], {"paired": True, "last": 2}, "choose among checkpoints, which weights or counts"),
        ([], {}, "checkpoints: there are none"),
    ],
)
def test_mistakes(run, names, options, message):
    with pytest.raises(InvalidInput, match=message):
        window_of(names, **options)
