"""Cold files by direct I/O: the same bytes in any order of reading, within the budget, and where it is refused."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_merges import assert_same_tensors, expected, make_merge, outputs_of

from fastmerge.engine import RunOptions, ahead, files, run
from fastmerge.engine.censuses import censuses_of
from fastmerge.engine.sizing import AHEAD_BYTES, Budget, divide
from fastmerge.errors import InputChanged
from fastmerge.kernels import cpu_extension

pytestmark = pytest.mark.compiled

BLOCK = 8192


@pytest.fixture
def stored(tmp_path):
    """Two files whose ends lie within a page, and their bytes."""
    made = []
    for name, nbytes in (("a", 100_003), ("b", 65_536 + 7)):
        path = tmp_path / name
        path.write_bytes(random.Random(nbytes).randbytes(nbytes))
        made.append((path, path.read_bytes()))
    return made


@contextlib.contextmanager
def reader_of(stored, groups, buffers=4, threads=3, step=5000):
    with contextlib.ExitStack() as stack:
        opened = []
        for path, data in stored:
            direct, plain = os.open(path, os.O_RDONLY | os.O_DIRECT), os.open(path, os.O_RDONLY)
            stack.callback(os.close, direct)
            stack.callback(os.close, plain)
            opened.append((direct, plain, len(data)))
        reader = cpu_extension().ReadAhead(opened, groups, step, BLOCK, buffers, threads)
        stack.callback(reader.stop)
        yield reader


def pieces(group, step):
    """The ranges of a group in turns, as the reader plans them."""
    for start in range(0, max(nbytes for *_, nbytes in group), step):
        for file, offset, nbytes in group:
            if start < nbytes:
                yield file, offset + start, min(step, nbytes - start)


GROUPS = [[(0, 9, 40_001), (1, 77, 30_000)], [(0, 40_010, 59_993), (1, 30_077, 35_466)], [(0, 9, 123)]]


@pytest.mark.parametrize("order", ["planned", "backwards", "mixed", "other"])
def test_every_byte_is_that_of_the_file_in_any_order(stored, order):
    asked = [piece for group in GROUPS for piece in pieces(group, 5000)]
    if order == "backwards":
        asked.reverse()
    if order == "mixed":
        random.Random(1).shuffle(asked)
    if order == "other":
        asked = [(0, 3, 70_000), (1, 0, 65_543), (0, 3, 70_000), *asked]
    with reader_of(stored, GROUPS) as reader:
        for file, offset, nbytes in asked:
            into = bytearray(nbytes)
            assert reader.read(file, offset, into)
            assert into == stored[file][1][offset : offset + nbytes]
        if order == "planned":
            assert reader.served == sum(nbytes for *_, nbytes in asked)


def test_threads_that_ask_at_once_get_their_own(stored):
    asked = [piece for group in GROUPS for piece in pieces(group, 1000)]

    def ask(piece):
        file, offset, nbytes = piece
        into = bytearray(nbytes)
        return reader.read(file, offset, into) and into == stored[file][1][offset : offset + nbytes]

    with reader_of(stored, GROUPS, step=1000) as reader, ThreadPoolExecutor(6) as pool:
        assert all(pool.map(ask, asked))


def test_what_a_file_does_not_hold_is_declined(stored):
    with reader_of(stored, [[(1, 60_000, 10_000)]]) as reader:
        assert not reader.read(1, 60_000, bytearray(10_000))
        into = bytearray(5543)
        assert reader.read(1, 60_000, into)
        assert into == stored[1][1][60_000:]


def test_a_descriptor_that_refuses_is_read_around(stored):
    """As where a device wants larger blocks: the direct one cannot be read."""
    (path, data), *_ = stored
    write_only, plain = os.open(path, os.O_WRONLY), os.open(path, os.O_RDONLY)
    try:
        reader = cpu_extension().ReadAhead([(write_only, plain, len(data))], [[(0, 5, 50_000)]], 5000, BLOCK, 4, 2)
        into = bytearray(50_000)
        assert reader.read(0, 5, into)
        assert into == data[5:50_005]
        assert reader.served == 0
        reader.stop()
    finally:
        os.close(write_only)
        os.close(plain)


@pytest.fixture
def cold(monkeypatch):
    """Every file counts as cold; return what was read in the ring's place."""
    declined: list[str] = []
    monkeypatch.setattr(files.InputFiles, "cached", lambda self, path: False)
    plainly = files.InputFiles._read

    def read(self, path, offset, into):
        declined.append(path)
        plainly(self, path, offset, into)

    monkeypatch.setattr(files.InputFiles, "_read", read)
    return declined


@pytest.mark.parametrize("method", ["linear", "ties", "model_stock"])
def test_a_merge_of_cold_files_is_the_same(tmp_path, cold, method):
    plan = make_merge(tmp_path, method, vocab=640, shards=2).plan()
    run(plan, tmp_path / "out", RunOptions(chunk=65536))
    assert_same_tensors(outputs_of(tmp_path / "out"), expected(plan))
    assert not cold


def test_a_file_system_without_direct_reads_is_read_as_before(tmp_path, cold, monkeypatch):
    opened, plan = os.open, make_merge(tmp_path, "ties").plan()

    def refuse(path, flags, *mode, **more):
        if flags & os.O_DIRECT and not flags & os.O_RDWR:
            raise OSError(22, "Invalid argument")
        return opened(path, flags, *mode, **more)

    monkeypatch.setattr(ahead.os, "open", refuse)
    run(plan, tmp_path / "out")
    assert_same_tensors(outputs_of(tmp_path / "out"), expected(plan))
    assert cold


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no /dev/shm that can be written")
def test_files_in_memory(tmp_path, cold, monkeypatch):
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        plan = make_merge(Path(folder), "ties", shards=2).plan()
        run(plan, tmp_path / "out")
        assert_same_tensors(outputs_of(tmp_path / "out"), expected(plan))


def test_a_file_that_was_truncated_is_one_error(tmp_path, cold, monkeypatch):
    plan = make_merge(tmp_path, "linear", vocab=640).plan()
    path = plan.models[1].files[0].path
    check = files.InputFiles.check
    monkeypatch.setattr(files.InputFiles, "check", lambda self: (check(self), os.truncate(path, 30_000)))
    with pytest.raises(InputChanged, match="ends at byte 30000"):
        run(plan, tmp_path / "out")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastmerge")]


def test_only_what_is_read_once_is_read_so(tmp_path):
    outputs = make_merge(tmp_path, "ties").plan().outputs
    assert ahead.direct_outputs(outputs, 1 << 30) == list(outputs)
    few = ahead.direct_outputs(outputs, 0)
    assert [o for o in outputs if o.group is None] == few
    assert not any(map(censuses_of, outputs))


def test_the_buffers_are_part_of_the_budget(tmp_path):
    outputs = make_merge(tmp_path, "ties").plan().outputs
    assert divide(outputs, Budget(4 << 30), workers=2).ahead == AHEAD_BYTES
    small = divide(outputs, Budget(64 << 20), workers=2)
    assert small.ahead // ahead.BLOCK < ahead.LEAST_BUFFERS
    sizes = divide(outputs, Budget(300 << 20), workers=2)
    assert ahead.LEAST_BUFFERS * ahead.BLOCK <= sizes.ahead <= (300 << 20) - sizes.arena
