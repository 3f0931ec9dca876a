"""The simulated bus, on tiny tensors."""

from __future__ import annotations

import csv

import pytest

from benchmarks import bus

pytestmark = pytest.mark.compiled


@pytest.mark.parametrize("sums", [True, False])
def test_a_dry_run(tmp_path, monkeypatch, sums):
    summed = []
    monkeypatch.setattr(bus.checksums, "digests_of", lambda data, step: summed.append(len(data)) or bytes(8))
    options = ["--check", "--runs", "1", "--csv", str(tmp_path / "bus.csv"), *([] if sums else ["--no-sums"])]
    monkeypatch.setattr("sys.argv", ["bus", *options])
    bus.main()
    with (tmp_path / "bus.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["linear", "ties"] and {row["sums"] for row in rows} == {str(int(sums))}
    assert bool(summed) == sums
    assert all(float(row["ms"]) > float(row["bus_ms"]) > 0 for row in rows)


def test_a_copy_takes_its_turn_on_the_bus():
    driver = bus.BusDriver(1e9)
    first, second = driver.up.end_of(10**6), driver.up.end_of(10**6)
    assert second - first == pytest.approx(1e-3)
    assert driver.down.end_of(10**6) < second + 1e-3, "the other direction is free"
