"""What an analysis found survives a stop, is used by the same command alone, and goes when it is of no more use."""

from __future__ import annotations

import os
import shutil

import pytest
from commands import call, call_json

import fastmerge.analysis.surveying as surveying
from fastmerge.analysis import analyze
from fastmerge.errors import OutputError

STOP_AFTER = 5


@pytest.fixture
def copied(family, tmp_path):
    """The family where it may be changed, and how it is analyzed."""
    for name in ("base", "one", "two"):
        shutil.copytree(family / name, tmp_path / name)
    return lambda out="out", **options: analyze(
        [str(tmp_path / "one"), str(tmp_path / "two")], str(tmp_path / "base"), tmp_path / out, **options
    )


@pytest.fixture
def measured(monkeypatch):
    """Names of the tensors that are measured; the one after ``STOP_AFTER`` stops the run, once."""
    names: list[str] = []
    original, stopped = surveying.measure, []

    def measure(reader, base, models, labels):
        if len(names) == STOP_AFTER and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        names.append(base.name)
        return original(reader, base, models, labels)

    monkeypatch.setattr(surveying, "measure", measure)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    return names


def stop(copied, tmp_path, measured):
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        copied()
    assert len(measured) == STOP_AFTER and (tmp_path / ".out.analysis").exists() and not (tmp_path / "out").exists()
    measured.clear()


def test_a_stopped_analysis_goes_on_and_says_the_same(copied, tmp_path, measured):
    stop(copied, tmp_path, measured)
    with (tmp_path / ".out.analysis").open("a") as journal:
        journal.write('{"tensor": "torn')
    told = []
    report = copied(progress=lambda done, total: told.append((done, total)))
    rest = len(measured)
    assert told[0][0] > 0 and told[-1][0] == told[-1][1]
    assert not list(tmp_path.glob(".*"))
    measured.clear()
    anew = copied("anew")
    assert len(measured) == rest + STOP_AFTER
    assert report.summary == anew.summary
    for name in ("tensors.csv", "pairs.csv", "spectra.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "anew" / name).read_bytes()


@pytest.mark.parametrize("change", ["input", "option"])
def test_what_was_found_for_other_inputs_or_options_is_not_used(change, copied, tmp_path, measured):
    stop(copied, tmp_path, measured)
    if change == "input":
        os.utime(next((tmp_path / "one").glob("*.safetensors")))
    copied(exact=change == "option")
    assert len(set(measured)) == len(measured) > STOP_AFTER
    assert {"lm_head.weight", "model.norm.weight"} <= set(measured)


def test_clean_lists_and_removes_the_journal(copied, tmp_path, measured):
    stop(copied, tmp_path, measured)
    (found,) = call_json("clean", tmp_path / "out")
    assert found["path"] == str(tmp_path / ".out.analysis") and found["target"] == str(tmp_path / "out")
    assert found["finished"] == STOP_AFTER and not found["in_use"]
    (tmp_path / ".other.analysis").write_text("somebody else's\n")
    assert call("clean", tmp_path, "--yes").exit_code == 0
    assert [path.name for path in tmp_path.glob(".*")] == [".other.analysis"]


def test_a_second_analysis_of_one_target_is_refused_meanwhile(copied, tmp_path):
    def while_it_runs(done, total):
        with pytest.raises(OutputError, match="another fastmerge is writing it"):
            copied()
        (found,) = [item for item in call_json("clean", tmp_path / "out") if item["path"].endswith(".analysis")]
        assert found["in_use"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copied(progress=while_it_runs)
