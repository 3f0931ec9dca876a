"""Pinned memory is made once, ahead where a command says so, and reused by later runs."""

from __future__ import annotations

import threading

import pytest
import torch

from fastmerge.devices import gpus
from fastmerge.engine import targets
from fastmerge.engine.arena import PAGE
from fastmerge.engine.ring import Ring
from fastmerge.errors import BudgetError, FastmergeError

HERE = torch.device("cpu")


class Driver:
    """Notes what is pinned, and by which thread."""

    def __init__(self):
        self.pinned: dict[int, int] = {}
        self.calls: list[str] = []

    def pin(self, device, address, nbytes):
        self.pinned[address] = nbytes
        self.calls.append(threading.current_thread().name)

    def unpin(self, device, address):
        del self.pinned[address]


def test_a_second_run_finds_the_memory_of_the_first():
    driver = Driver()
    ring = Ring(driver)
    with ring.taken(HERE, 5 * PAGE) as arena:
        assert arena.take(5 * PAGE) == 0 and driver.pinned == {arena.address: 5 * PAGE}
        arena.bytes[:3] = b"abc"
    with ring.taken(HERE, 2 * PAGE) as again:
        assert again is arena and again.take(5 * PAGE) == 0, "what the first run took is free"
    assert len(driver.calls) == 1


def test_a_larger_run_gets_more():
    driver = Driver()
    ring = Ring(driver)
    for pages in (1, 3, 2):
        with ring.taken(HERE, pages * PAGE) as arena:
            assert arena.size >= pages * PAGE and list(driver.pinned) == [arena.address]
    assert len(driver.calls) == 2
    ring.release()
    ring.release()
    assert not driver.pinned


def test_runs_side_by_side_have_memory_of_their_own():
    driver = Driver()
    ring = Ring(driver)
    with ring.taken(HERE, PAGE) as first:
        with ring.taken(HERE, PAGE) as second:
            assert set(driver.pinned) == {first.address, second.address}
        assert set(driver.pinned) == {first.address}
    with ring.taken(HERE, PAGE) as third:
        assert third is first


def test_it_is_made_ahead_on_a_thread_of_its_own():
    driver = Driver()
    ring = Ring(driver)
    ring.prepare(lambda: (HERE, 4 * PAGE))
    ring.prepare(lambda: pytest.fail("it is made already"))
    with ring.taken(HERE, PAGE) as arena:
        assert arena.size == 4 * PAGE and driver.calls == ["fastmerge-pinned"]


@pytest.mark.parametrize("nothing", [lambda: None, lambda: 1 / 0])
def test_what_could_not_be_made_ahead_is_made_by_the_run(nothing):
    driver = Driver()
    ring = Ring(driver)
    ring.prepare(nothing)
    with ring.taken(HERE, PAGE):
        assert driver.calls == [threading.current_thread().name]


def test_memory_that_cannot_be_pinned_is_told_and_tried_again():
    driver = Driver()
    ring = Ring(driver)

    def refused(device, address, nbytes):
        raise BudgetError("cannot be pinned")

    driver.pin = refused
    with pytest.raises(BudgetError, match="cannot be pinned"), ring.taken(HERE, PAGE):
        pass
    del driver.pin
    with ring.taken(HERE, PAGE) as arena:
        assert list(driver.pinned) == [arena.address]


def test_populated_memory_is_empty_and_may_be_written():
    with Ring(Driver()).taken(HERE, 3 * PAGE) as arena:
        assert bytes(arena.bytes) == bytes(3 * PAGE)
        arena.bytes[-1] = 7


def test_commands_prepare_what_they_will_pin(monkeypatch):
    driver = Driver()
    ring = Ring(driver)
    monkeypatch.setattr(targets, "_driver_and_ring", lambda: (driver, ring))
    monkeypatch.setattr(gpus, "why_no_driver", lambda: None)
    target = targets.Accelerators([HERE, HERE], driver, ring, None, "a test")
    monkeypatch.setattr(targets, "choose", lambda device, vram: target)
    targets.prepare("cpu", 3 * PAGE)
    assert ring._maker is None
    targets.prepare("cuda", 3 * PAGE)
    with ring.taken(HERE, PAGE) as arena:
        assert arena.size == 3 * PAGE
    ring.release()

    def refused(device, vram):
        raise FastmergeError("no GPU")

    monkeypatch.setattr(targets, "choose", refused)
    targets.prepare("cuda", 3 * PAGE)
    with ring.taken(HERE, PAGE) as arena:
        assert arena.size == PAGE
