"""What bounds a merge on this machine: rates that are measured once, and the part that takes longest."""

from __future__ import annotations

import json
import os

import pytest

from fastmerge.engine import machine
from fastmerge.engine.machine import Limit, Machine, limit_of


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(machine, "REQUEST", 4096)
    monkeypatch.setattr(machine, "SAMPLE", 64 << 10)
    monkeypatch.setattr(machine, "COPIED", 1 << 16)


def test_the_part_that_takes_longest_is_named():
    disk, memory = Limit("reading the inputs from the disk", 3 * 10**9, 1.5e9), Limit("copying", 10**10, 2e10)
    assert limit_of([memory, disk]) is disk and disk.seconds == 2 and limit_of([]) is None
    assert str(disk) == "reading the inputs from the disk takes 2.0 s at the 1.5 GB/s of this machine"


def test_rates_are_measured_once_and_kept_until_the_next_boot(tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(machine, "_copy_rate", lambda: measured.append(1) or 1e9)
    for _ in range(2):
        here = Machine(tmp_path / "cache")
        assert here.copying == here.copying == 1e9
    assert len(measured) == 1
    kept = tmp_path / "cache" / "machine.json"
    assert json.loads(kept.read_text())["rates"] == {"memory": 1e9}
    monkeypatch.setattr(machine, "_boot", lambda: "another boot")
    assert Machine(tmp_path / "cache").copying == 1e9 and len(measured) == 2
    kept.write_text("[1")
    assert Machine(tmp_path / "cache").copying == 1e9 and len(measured) == 3
    assert os.listdir(tmp_path / "cache") == ["machine.json"]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setattr(machine, "_copy_rate", lambda: 1e9)
    assert Machine(tmp_path / "cache").copying == 1e9


def test_what_bounds_a_merge(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_copy_rate", lambda: 100.0)
    monkeypatch.setattr(machine, "_read_rate", lambda path: 10.0)
    monkeypatch.setattr(machine, "_write_rate", lambda folder: 5.0)
    here, out = Machine(), str(tmp_path)
    found = here.limits(read=400, cold=300, written=100, path=out, out=out)
    assert {limit.what.split()[0]: limit.seconds for limit in found} == {"copying": 5, "reading": 30, "writing": 20}
    cached = here.limits(read=400, cold=0, written=100, path="never opened", out=out, bus=8.0)
    assert limit_of(cached).what == "bringing the inputs to the GPU" and limit_of(cached).seconds == 50


def test_disks_and_memory_are_measured(tmp_path):
    path = tmp_path / "input"
    path.write_bytes(bytes(256 << 10))
    here = Machine()
    assert here.copying > 0
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
        direct = True
    except OSError:
        direct = False
    assert (here.reading(str(path)) > 0) == direct == (here.writing(str(tmp_path)) > 0)
    assert os.listdir(tmp_path) == ["input"]


def test_where_there_is_no_direct_access_the_disk_is_no_bound(tmp_path, monkeypatch):
    def refused(path, flags):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(machine, "_opened", refused)
    (tmp_path / "input").write_bytes(bytes(8192))
    found = Machine().limits(8192, 8192, 10, str(tmp_path / "input"), str(tmp_path))
    assert [limit.what.split()[0] for limit in found] == ["copying"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_what_cannot_be_measured_is_no_bound(tmp_path, monkeypatch, error):
    def failing(*_):
        raise error

    for measure in ("_copy_rate", "_read_rate", "_write_rate"):
        monkeypatch.setattr(machine, measure, failing)
    assert limit_of(Machine().limits(8192, 8192, 10, str(tmp_path), str(tmp_path))) is None
