"""Cached inputs that are seen in place: the same bits, and one error where a file becomes shorter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from tiny_merges import assert_same_tensors, expected, make_merge, outputs_of

from fastmerge.engine import RunOptions, held, large, run
from fastmerge.engine.gathering import PlannedFiles
from fastmerge.engine.mapping import InPlace, Mapped
from fastmerge.errors import CheckpointError, InputChanged
from fastmerge.kernels import cpu_extension

pytestmark = pytest.mark.compiled


def test_a_file_that_becomes_shorter_reads_as_zeros_and_says_so(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(data := os.urandom(40_000))
    with path.open("rb") as file:
        mapped, whole = (Mapped(cpu_extension().MappedFile(file.fileno(), len(data))) for _ in range(2))
    assert mapped.bytes == data
    assert not mapped.broken
    os.truncate(path, 10_000)
    assert mapped.bytes[:10_000] == data[:10_000]
    assert mapped.bytes[20_000:] == bytes(20_000)
    assert mapped.broken
    assert not whole.broken  # nobody has looked there
    mapped.forget(5000, 30_000)
    assert mapped.bytes[:10_000] == data[:10_000]


def test_bus_errors_of_others_stay_what_they_were(tmp_path):
    (tmp_path / "file").write_bytes(bytes(8192))
    program = """
import mmap, os, sys
from fastmerge import _C
with open(sys.argv[1], "r+b") as file:
    ours, theirs = _C.MappedFile(file.fileno(), 8192), mmap.mmap(file.fileno(), 8192)
    os.truncate(sys.argv[1], 0)
    assert memoryview(ours)[5000] == 0 and ours.broken
    theirs[5000]
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "file"], capture_output=True, text=True)
    assert done.returncode == -signal.SIGBUS, done.stderr


@pytest.fixture
def mapped(monkeypatch):
    """Return the names of the tensors that are seen in place."""
    names: list[str] = []
    place = held.HeldInputs._held

    def watch(self, tensor, *given):
        placed = place(self, tensor, *given)
        names.extend([tensor.name] if placed.mapped else [])
        return placed

    monkeypatch.setattr(held.HeldInputs, "_held", watch)
    return names


@pytest.mark.parametrize("method", ["ties", "model_stock", "della"])
def test_a_merge_of_cached_files_copies_nothing_that_it_wants_whole(tmp_path, mapped, monkeypatch, method):
    monkeypatch.setattr("fastmerge.engine.sizing.BATCH_BYTES", 0)
    plan = make_merge(tmp_path, method, vocab=1100, hidden=64, shards=2).plan()
    run(plan, tmp_path / "out", RunOptions(chunk=65536))
    assert_same_tensors(outputs_of(tmp_path / "out"), expected(plan))
    assert "model.embed_tokens.weight" in mapped
    again = tmp_path / "copied"
    monkeypatch.setattr(InPlace, "of", lambda self, tensor: None)
    run(plan, again, RunOptions(chunk=65536))
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {
        p.name: p.read_bytes() for p in again.iterdir()
    }


@pytest.mark.parametrize("when", ["_solve", "_merge"])
def test_a_file_that_is_truncated_while_it_is_merged_is_one_error(tmp_path, mapped, monkeypatch, when):
    monkeypatch.setattr("fastmerge.engine.sizing.BATCH_BYTES", 0)
    plan = make_merge(tmp_path, "ties", vocab=1100, hidden=64).plan()
    path = plan.models[1].files[0].path
    step = getattr(large.Large, when)

    def truncate(self, *given):
        os.truncate(path, 4096)
        return step(self, *given)

    monkeypatch.setattr(large.Large, when, truncate)
    with pytest.raises(InputChanged, match=f"{path}: (changed since the merge was planned|ends at byte )"):
        run(plan, tmp_path / "out", RunOptions(chunk=65536))
    assert not (tmp_path / "out").exists()
    assert mapped


def test_what_cannot_be_read_is_an_error_though_the_file_did_not_change(tmp_path):
    plan = make_merge(tmp_path, "ties").plan()
    tensor = plan.outputs[0].inputs.every[0]

    class Broken:
        broken = True

    with PlannedFiles(plan) as inputs:
        inputs.open()
        with pytest.raises(CheckpointError, match=f"{tensor.path}: cannot be read"):
            InPlace(inputs, wanted=True).check(tensor, Broken())


def test_only_values_that_lie_there_as_they_are(tmp_path, monkeypatch):
    plan = make_merge(tmp_path, "ties").plan()
    tensor = plan.outputs[0].inputs.every[0]
    with PlannedFiles(plan) as inputs:
        inputs.open()
        places = InPlace(inputs, wanted=True)
        assert places.of(tensor) is places.of(tensor) is not None
        assert places.of(replace(tensor, offset=tensor.offset + 1)) is None
        assert places.of(replace(tensor, offset=inputs.nbytes(tensor.path))) is None
        assert InPlace(inputs, wanted=False).of(tensor) is None
        monkeypatch.setattr(inputs, "cached", lambda path: False)
        assert InPlace(inputs, wanted=True).of(tensor) is None
