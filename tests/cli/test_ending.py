"""The end of a process that was a command: at once, with all that was printed and all that was to be done."""

from __future__ import annotations

import io
import subprocess
import sys
import threading

import pytest

from fastmerge.cli import _ending

PROCESS = """
import atexit, sys
from fastmerge.cli import run
atexit.register(print, "at the end")

class Lingering:
    def __del__(self):
        print("taken apart")

lingering = Lingering()
run()
"""


@pytest.fixture
def ended(monkeypatch):
    """The statuses with which this process would have ended; it is as in a process of the command alone."""
    statuses: list[int] = []
    monkeypatch.setattr(_ending.os, "_exit", statuses.append)
    monkeypatch.setattr(_ending.atexit, "_run_exitfuncs", lambda: None)
    monkeypatch.setattr(_ending, "_needs_python", lambda: False)
    return statuses


@pytest.mark.parametrize(("arguments", "status"), [(["--version"], 0), (["check", "nowhere.yml"], 2)])
def test_a_command_ends_at_once(tmp_path, arguments, status):
    command = [sys.executable, "-c", PROCESS, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert done.stdout.endswith("at the end\n")  # and not with "taken apart"
    assert ("nowhere.yml" in done.stderr) == (status == 2)


@pytest.mark.parametrize(("status", "expected"), [(None, [0]), (0, [0]), (2, [2]), (130, [130]), ("a message", [])])
def test_what_a_status_becomes(ended, status, expected):
    _ending.end(status)
    assert ended == expected


def test_output_that_cannot_be_written_is_left_to_python(ended, monkeypatch):
    class Gone(io.StringIO):
        def flush(self):
            raise BrokenPipeError

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Gone())
        _ending.end(0)
    assert ended == []


def test_who_else_has_work_at_the_end(monkeypatch):
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.main_thread()])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "gettrace", lambda: None)
    assert not _ending._needs_python()
    for name, value in (("gettrace", print), ("getprofile", print)):
        with monkeypatch.context() as patch:
            patch.setattr(sys, name, lambda value=value: value)
            assert _ending._needs_python()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", sys)
        assert _ending._needs_python()
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.main_thread(), threading.Thread()])
    assert _ending._needs_python()
