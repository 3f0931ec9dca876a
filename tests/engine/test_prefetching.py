"""Reading ahead: only what is not in the page cache, in the order of the merge, and not too far."""

from __future__ import annotations

import errno
import itertools
import os
import threading

import pytest
from tiny_merges import assert_same_tensors, expected, make_merge, outputs_of

from fastmerge.engine import RunOptions, caching, files, prefetching, run
from fastmerge.engine.gathering import PlannedFiles
from fastmerge.engine.prefetching import prefetched, ranges_of
from fastmerge.engine.sizing import Sizes

SIZES = Sizes(workers=1, slots=1, chunk=65536, slot=1 << 20, regions=1 << 26, arena=1 << 26)


@pytest.fixture
def plan(tmp_path):
    return make_merge(tmp_path, "ties", shards=2).plan()


def test_what_an_output_reads_comes_in_turns_and_whole(plan, monkeypatch):
    monkeypatch.setattr(prefetching, "STEP", 4096)
    ranges = [item for output in plan.outputs for item in ranges_of(output)]
    at = 0
    for output in plan.outputs:
        parts = {(t.path, t.offset): t.nbytes for t in output.inputs.every}
        end = at + sum(-(-nbytes // 4096) for nbytes in parts.values())
        mine, at = ranges[at:end], end
        assert [path for path, _, _ in mine[: len(parts)]] == [path for path, _ in parts]
        for (path, offset), nbytes in parts.items():
            pieces = sorted((o, n) for p, o, n in mine if p == path and offset <= o < offset + nbytes)
            assert sum(n for _, n in pieces) == nbytes
            assert all(o + n == following for (o, n), (following, _) in itertools.pairwise(pieces))
    assert at == len(ranges)


def test_only_cold_files_are_advised(plan, monkeypatch):
    advised: list[tuple[str, int, int]] = []
    monkeypatch.setattr(files.InputFiles, "advise", lambda self, *given: advised.append(given))
    cold = plan.models[1].files[0].path
    with PlannedFiles(plan) as inputs:
        inputs.open()
        monkeypatch.setattr(inputs, "cached", lambda path: path != cold)
        with prefetched(inputs, plan.outputs, SIZES, lambda: 1 << 40):
            for thread in threading.enumerate():
                if thread.name == "fastmerge-ahead":
                    thread.join()
        assert advised == [item for output in plan.outputs for item in ranges_of(output) if item[0] == cold]
        monkeypatch.setattr(inputs, "cached", lambda path: True)
        with prefetched(inputs, plan.outputs, SIZES, lambda: 0):
            assert not [thread for thread in threading.enumerate() if thread.name == "fastmerge-ahead"]


def test_it_stays_ahead_by_so_many_bytes_and_ends_with_the_merge(plan, monkeypatch):
    monkeypatch.setattr(prefetching, "AHEAD", 0)
    advised: list[tuple[str, int, int]] = []
    first = threading.Event()
    with PlannedFiles(plan) as inputs:
        inputs.open()
        monkeypatch.setattr(inputs, "cached", lambda path: False)
        monkeypatch.setattr(inputs, "advise", lambda *given: (advised.append(given), first.set()))
        with prefetched(inputs, plan.outputs, SIZES, lambda: 0):
            assert first.wait(60)
    assert len(advised) == 1


def test_a_probe_tells_what_is_cached_and_brings_nothing_in(plan):
    path = plan.models[0].files[0].path
    with PlannedFiles(plan) as inputs:
        inputs.open()
        assert inputs.probe(path)  # just written
        fd = inputs.descriptor(path)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        places = range(0, inputs.nbytes(path), 4096)
        if caching.resident(fd, path, inputs.nbytes(path), places):
            pytest.skip("this file system keeps its files in memory")
        assert not inputs.probe(path)
        assert caching.resident(fd, path, inputs.nbytes(path), places) == 0


def test_files_of_others_are_asked_page_by_page(plan, monkeypatch):
    path = plan.models[0].files[0].path
    answers: list[OSError | None] = []

    def preadv(fd, buffers, offset, flags=0):
        assert flags == os.RWF_NOWAIT
        if (answer := answers.pop()) is not None:
            raise answer
        return 1

    monkeypatch.setattr(caching.os, "access", lambda *_: False)
    monkeypatch.setattr(caching.os, "geteuid", lambda: -1)
    with PlannedFiles(plan) as inputs:
        inputs.open()
        monkeypatch.setattr(caching.os, "preadv", preadv)
        there, missing = None, BlockingIOError(errno.EAGAIN, "")
        for found, cached in (([there] * 40, True), ([missing] * 40, False), ([missing, there] * 20, True)):
            answers[:] = found
            assert inputs.probe(path) == cached
        answers[:] = [OSError(errno.EOPNOTSUPP, "")]
        assert inputs.probe(path)


def test_a_merge_of_cold_files_is_the_same(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(files.InputFiles, "cached", lambda self, path: False)
    run(plan, tmp_path / "out", RunOptions(ram=100 << 20))  # too little to read ahead by itself
    assert_same_tensors(outputs_of(tmp_path / "out"), expected(plan))
