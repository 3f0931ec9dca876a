"""``fastmerge clean``, and signals that end a merge in order."""

from __future__ import annotations

import os
import signal

import pytest
from commands import call, call_json

from fastmerge.engine.files import OutputFiles


@pytest.fixture
def stopped(ties, tmp_path, monkeypatch):
    """The folder of an output whose merge was stopped by SIGTERM in the middle."""
    write, left = OutputFiles.write, iter(range(2))

    def signalled(self, *args):
        write(self, *args)
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(OutputFiles, "write", signalled)
        result = call("merge", ties, out, "--ram", "2MB", "--threads", 1)
    assert result.exit_code == 128 + signal.SIGTERM
    assert (
        "interrupted: SIGTERM; stopped with " in result.stderr and f"fastmerge clean {out} removes it" in result.stderr
    )
    return out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_end_a_command_in_order(ties, tmp_path, monkeypatch, number):
    monkeypatch.setattr(OutputFiles, "write", lambda *args: os.kill(os.getpid(), number))
    # The tests may run where the signal is ignored (nohup, a job in the background).
    default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, default)
    try:
        result = call("merge", ties, tmp_path / "out")
        assert signal.getsignal(number) is default
    finally:
        signal.signal(number, before)
    assert result.exit_code == 128 + number
    assert result.stderr.splitlines()[-1].startswith("interrupted")
    assert all(str(left) in result.stderr for left in tmp_path.iterdir())


def test_ignored_signals_stay_ignored(ties, tmp_path, monkeypatch):
    write = OutputFiles.write
    monkeypatch.setattr(OutputFiles, "write", lambda *args: os.kill(os.getpid(), signal.SIGHUP) or write(*args))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert call("merge", ties, tmp_path / "out").exit_code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.compiled  # which merge within the small budget
@pytest.mark.parametrize("named", ["output", "parent"])
def test_what_is_left_is_listed_and_removed(stopped, named):
    folder = stopped if named == "output" else stopped.parent
    (partial,) = os.listdir(stopped.parent)
    listed = call("clean", folder, "--dry-run")
    assert listed.exit_code == 0 and partial in listed.stdout and "removed" not in listed.stdout
    unasked = call("clean", folder)
    assert unasked.stdout.endswith("nothing was removed; --yes removes what is not in use\n")
    (value,) = call_json("clean", folder)
    assert value["path"] == str(stopped.parent / partial) and value["target"] == str(stopped)
    assert value["finished"] > 0 and not value["removed"] and not value["in_use"]
    assert os.listdir(stopped.parent) == [partial]
    assert call("clean", folder, "--yes").stdout.splitlines()[-1].startswith("removed 1, ")
    assert os.listdir(stopped.parent) == []
    assert call("clean", folder).stdout == f"{folder}: no merge left anything\n"


@pytest.mark.compiled
def test_the_same_command_goes_on(stopped, ties):
    assert "taken over from an interrupted run" in call("merge", ties, stopped).stdout
    assert os.listdir(stopped.parent) == ["out"]


def test_folders_that_are_not_there(tmp_path):
    result = call("clean", tmp_path / "a" / "b")
    assert result.exit_code == 2 and result.stderr == f"error: {tmp_path}/a is no folder\n"
