"""Greedy soups: the search, scores by functions and commands, and what an interruption leaves."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from commands import call, call_json
from safetensors.torch import load_file, save_file
from tiny_merges import outputs_of

import fastmerge
from fastmerge.averaging.scoring import scorer_of
from fastmerge.engine.leftovers import leftovers_of, remove
from fastmerge.errors import FastmergeError

# The best soup is that whose only number is nearest to 0.
VALUES = {"m-1": 4.0, "m-2": -1.0, "m-10": 2.0, "m-11": 8.0}
TENSOR = "model.norm.weight"


@pytest.fixture
def models(tmp_path, monkeypatch):
    for name, value in VALUES.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
        save_file({TENSOR: torch.full((4,), value)}, tmp_path / name / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def value_of(folder) -> float:
    return load_file(f"{folder}/model.safetensors")[TENSOR][0].item()


def distance(folder) -> float:
    return -abs(value_of(folder))


def test_the_search(models):
    seen, there = [], []

    def score(folder):
        seen.append(value_of(folder))
        there.append(sorted(path.name for path in models.iterdir()))
        return distance(folder)

    found = fastmerge.greedy_soup("m-*", "out", score)
    # Alone, in the order of their numbers; then -1, with 2, with 4, with 8: the means 0.5, 5/3 and 3.
    assert seen[:4] == [4, -1, 2, 8] and seen[4:] == pytest.approx([0.5, 5 / 3, 3])
    assert found.models == ("m-2", "m-10") and found.score == -0.5
    assert [(trial.models[-1], trial.kept) for trial in found.trials[4:]] == [
        ("m-10", True), ("m-1", False), ("m-11", False)
    ]  # fmt: skip
    assert outputs_of(models / "out")[TENSOR].tolist() == [0.5] * 4
    assert fastmerge.verify("out").ok and found.report.tensors == 1
    assert "Greedy soup of 2 of 4 checkpoints, score -0.5" in (models / "out/mergekit_config.yml").read_text()
    # One trial at a time lies beside the output, and none in the end.
    assert ".out.steps" in there[-1] and not (models / ".out.steps").exists()


def test_equal_scores_join_in_the_order_given(models):
    found = fastmerge.greedy_soup(["m-10", "m-1", "m-2"], "out", lambda folder: 1.0)
    assert found.models == ("m-1", "m-2", "m-10")
    assert outputs_of(models / "out")[TENSOR][0].item() == pytest.approx(5 / 3)


# Without torch, which takes seconds to import.
SCORE = """
import struct, sys
open("calls", "a").write(sys.argv[-1] + "\\n")
data = open(f"{sys.argv[-1]}/model.safetensors", "rb").read()
start = 8 + int.from_bytes(data[:8], "little")
print("some progress")
print(abs(struct.unpack("<f", data[start : start + 4])[0]))
"""


def test_a_command_scores_and_an_interrupted_search_goes_on(models):
    (models / "score.py").write_text(SCORE)
    (models / "broken.py").write_text(SCORE + "if 'candidate' in sys.argv[-1]: sys.exit('no GPU')")
    command = f"{sys.executable} -SE score.py"
    (models / "score.py").rename(models / "good.py")
    (models / "broken.py").rename(models / "score.py")
    stopped = call("average", "m-*", "out", "--greedy", command, "--minimize")
    assert stopped.exit_code == 2 and "score.py" in stopped.stderr and "ended with status 1" in stopped.stderr
    assert len((models / "calls").read_text().splitlines()) == 5
    assert [path.name for path in (models / ".out.steps").iterdir()] == ["scores.json"]
    (models / "good.py").rename(models / "score.py")
    found = call_json("average", "m-*", "out", "--greedy", command, "--minimize")
    assert (found["models"], found["score"]) == (["m-2", "m-10"], 0.5)
    # The four that were scored before were not scored again.
    assert len((models / "calls").read_text().splitlines()) == 5 + 3
    assert not (models / ".out.steps").exists()


def test_trials_are_told(models):
    (models / "judge2.py").write_text("def score(folder):\n    return 1\n")
    result = call("average", "m-1", "m-2", "out", "--greedy", "judge2.py:score")
    assert result.stderr == "note: m-1: 1\nnote: m-2: 1\nnote: m-2 as part 2: 1, joins\n"
    assert result.stdout.splitlines()[1:] == ["score   1", "part 1  m-1", "part 2  m-2"]


def test_clean_knows_what_a_search_leaves(models):
    scratch = models / ".out.steps"
    scratch.mkdir()
    (scratch / "scores.json").write_text(json.dumps({"key": "x", "scores": {}}))
    (left,) = leftovers_of(models / "out")
    remove(left)
    assert not scratch.exists()


def test_an_output_that_is_there_is_refused_before_anything_is_scored(models):
    (models / "out").mkdir()
    (models / "out" / "mine.txt").touch()
    with pytest.raises(FastmergeError, match="out exists"):
        fastmerge.greedy_soup("m-*", "out", lambda folder: pytest.fail("scored"))


def test_functions_by_name(models):
    (models / "judge.py").write_text("def score(folder):\n    return len(folder)\nword = 3\n")
    assert scorer_of("judge:score")("abc") == 3
    assert scorer_of("./judge.py:score")("abcd") == 4
    assert scorer_of(f"{sys.executable} -c 'print(len(\"{{}}\"))'")("abcde") == 5
    sys.modules.pop("judge")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere_at_all:score", "nowhere_at_all: cannot be imported"),
        ("os:nothing", "os has no function nothing"),
        ("", "the score is empty"),
        ("./no-such-program", "./no-such-program: cannot be run: No such file"),
        ("true", "the score of out by true is ''; expected a number"),
        ("echo nan", "the score of out by echo is 'nan out'; expected a number"),
    ],
)
def test_scores_that_are_none(models, text, message):
    with pytest.raises(FastmergeError, match=message):
        scorer_of(text)("out")


def test_a_function_that_returns_no_number(models):
    with pytest.raises(FastmergeError, match="the score of m-1 is None; expected a number"):
        fastmerge.greedy_soup("m-*", "out", lambda folder: None)


def test_what_a_greedy_soup_does_not_take(models):
    result = call("average", "m-*", "out", "--greedy", "true", "--schedule", "linear", "--last", 2)
    assert result.exit_code == 2 and "--schedule, --last and --greedy true" in result.stderr
