"""The command that proves and times the GPU backends, as far as a machine without a GPU can run it."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mirrors import compute_on_mirrors
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks import _rows, inventory
from benchmarks._bench import Bench
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import goals, operations, streamed, verify
from benchmarks.gpu.measure import STEPS
from benchmarks.kernels.cases import CASES
from benchmarks.kernels.plain_torch import MERGES
from fastmerge import kernels
from fastmerge.engine import running

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_dry_run(tmp_path):
    dry_run = [sys.executable, "-m", "benchmarks.gpu", "--check", "--out", tmp_path]
    result = subprocess.run(dry_run, cwd=ROOT, capture_output=True, text=True)
    print(result.stdout, result.stderr, (tmp_path / "log.txt").read_text()[-5000:])
    assert result.returncode == 0
    with (tmp_path / "check.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(row["device"].startswith("check on ") for row in rows)
    assert {row["tool"] for row in rows} == {"fastmerge", "fastmerge loop", "torch", "torch.compile"}
    assert {row["bound"] for row in rows} == {"copy", "upload", "pcie", "bare"}
    assert {"ties", "select", "ties, 70B", "ties, streamed, pinned", "ties, files"} <= {row["op"] for row in rows}
    assert "missed        ties streamed from pinned memory" in (tmp_path / "summary.txt").read_text()


def test_every_timing_has_a_phase_of_four_minutes(tmp_path):
    phases = command.phases(tmp_path / "gpu.csv", "mergekit's python", "abc123", "")
    assert tuple(phases) == command.PHASES
    assert max(sum(stage.seconds for stage in stages) for stages in phases.values()) <= 240
    commands = {step.name: step.command for stages in phases.values() for stage in stages for step in stage.steps}
    assert set(STEPS) <= set(commands)
    assert commands["methods"][-4:] == ["--commit", "abc123", "--mergekit-python", "mergekit's python"]


def _steps(monkeypatch, *stages: tuple[int, dict[str, str]], phase: str = "check", **says: str) -> None:
    """Let the command run these shell scripts, by name, in stages of so many seconds."""

    def plan(csv: Path) -> dict[str, list[command.Stage]]:
        return {
            phase: [
                command.Stage(
                    seconds,
                    [
                        command.Step(name, ["sh", "-c", script], says=says.get(name, ""))
                        for name, script in steps.items()
                    ],
                )
                for seconds, steps in stages
            ],
            "other": [command.Stage(60, [command.Step("other", ["true"])])],
        }

    monkeypatch.setattr(command, "dry_run", plan)


def _main(monkeypatch, out: Path, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--check", "--out", str(out), *arguments])
    return command.main()


def test_the_plain_gram_is_that_of_the_kernels():
    case = inventory.BY_NAME["gram"]
    inputs = inventory.make_inputs(True, 301, 4, torch.float32)
    found = kernels.gram_matrix(case.run(inputs[0], inputs), 4)
    torch.testing.assert_close(case.plain(inputs), torch.from_numpy(found))


def test_a_step_that_fails_or_hangs_stops_no_other(tmp_path, monkeypatch):
    left = tmp_path / "left"
    os.mkfifo(left)
    # Reads nothing, and then the end, once no child of the step has it open.
    reader = os.open(left, os.O_RDONLY | os.O_NONBLOCK)
    _steps(
        monkeypatch,
        (1, {"hangs": f"(exec sleep 1000) > {left} & wait"}),
        (60, {"bad": "echo why; exit 3", "absent": "exec no-such-program", "good": "echo fine"}),
    )
    assert _main(monkeypatch, tmp_path) == 1
    summary, log = (tmp_path / "summary.txt").read_text(), (tmp_path / "log.txt").read_text()
    assert [line.split()[0] for line in summary.splitlines()[:5]] == ["==", "hangs", "bad", "absent", "good"]
    assert "exit 3  why" in summary and "stopped after 1 s" in summary and "exit 0  fine" in summary
    assert "==== bad: sh -c echo why; exit 3\nwhy\n" in log
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_step_must_say_what_it_should(tmp_path, monkeypatch):
    _steps(monkeypatch, (60, {"tests": "echo 118 skipped in 9 s"}), tests=" passed")
    assert _main(monkeypatch, tmp_path) == 1
    assert "118 skipped" in (tmp_path / "summary.txt").read_text()


def test_steps_use_the_time_that_earlier_ones_left(tmp_path, monkeypatch):
    _steps(monkeypatch, (60, {"short": "true"}), (0, {"long": "sleep 1.1; echo done"}), (60, {"bad": "false"}))
    assert _main(monkeypatch, tmp_path) == 1
    assert "exit 0  done" in (tmp_path / "summary.txt").read_text()


def test_phases_run_alone_and_gather_their_rows(tmp_path, monkeypatch):
    _steps(monkeypatch, (60, {"bad": "false"}))
    assert _main(monkeypatch, tmp_path, "check") == 1
    assert _main(monkeypatch, tmp_path, "other") == 0
    summary = (tmp_path / "summary.txt").read_text()
    assert summary.index("== check") < summary.index("bad ") < summary.index("== other")
    assert summary.count("every kernel, 64M elements and more") == 2
    with pytest.raises(SystemExit):
        _main(monkeypatch, tmp_path, "no such phase")


def _row(op: str, tool: str = "fastmerge", backend: str = "cuda", **values) -> dict[str, str]:
    row = {
        "device": "GPU", "commit": "0", "date": "today", "op": op, "tool": tool, "backend": backend, "shape": 64 << 20,
        "dtype": "bfloat16", "models": 4, "ms": 1.0, "fraction": 0.95, "times_bound": 1.1,
    }  # fmt: skip
    return {key: str(value) for key, value in (row | values).items()}


def _verdicts(tmp_path: Path, *rows: dict[str, str]) -> dict[str, bool | None]:
    path = tmp_path / "gpu.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, _row(""))
        writer.writeheader()
        writer.writerows(rows)
    return {goal.wanted: goal.met for goal in goals.goals(_rows.read(path))}


@pytest.mark.parametrize(
    ("wanted", "rows", "met"),
    [
        ("every kernel", [_row("gram"), _row("select, deltas N(0, 0)")], True),
        ("every kernel", [_row("gram"), _row("norms, random", fraction=0.89)], False),
        # The faster backend counts; small tensors and the cost on the host do not.
        ("every kernel", [_row("gram"), _row("gram", backend="triton", ms=9, fraction=0.1)], True),
        ("every kernel", [_row("gram"), _row("gram", shape=1 << 20, fraction=0.1)], True),
        ("every kernel", [_row("gram, host", shape=4096, fraction=0.1)], None),
        # Rows of another commit replace earlier ones; of one commit the median counts.
        ("every kernel", [_row("gram", fraction=0.1, commit="older"), _row("gram")], True),
        ("every kernel", [_row("gram", fraction=f) for f in (0.1, 0.95, 0.93)], True),
        ("every kernel", [_row("gram", fraction=f) for f in (0.1, 0.95, 0.1)], False),
        ("ties, 64M", [_row("ties", times_bound=2.2), _row("ties", shape=256 << 20, times_bound=2.4)], False),
        ("ties of a 70B (base + 3): kernels", [_row("ties, 70B, kernels", ms=499.0)], True),
        ("ties of a 70B (base + 3): kernels", [_row("ties, 70B", ms=499.0)], None),
        ("ties, 70B, wall", [_row("ties, 70B, wall", ms=361.0), _row("ties, 70B", ms=300.0)], False),
        ("dare_ties, 70B, wall", [_row("dare_ties, 70B, wall", ms=360.0)], True),
        ("slerp of 64M", [_row("slerp", ms=0.34), _row("slerp", shape=256 << 20, ms=1.2)], True),
        ("select_boundaries_many of 300", [_row("select_boundaries_many of 300", shape=300 << 13, ms=2.5)], False),
        ("linear streamed from pinned memory", [_row("linear, streamed, pinned", times_bound=1.16)], False),
        ("linear streamed from host memory:", [_row("linear, streamed, pinned", times_bound=1.1)], None),
        ("linear streamed from host memory:", [_row("linear, streamed", times_bound=1.29)], True),
        ("ties of a 70B (base + 3) from host", [_row("ties, streamed", shape=70_553_706_496, ms=12_600.0)], False),
        ("ties of a 70B (base + 3) from host", [_row("ties, streamed", shape=5_523_972_096, ms=900.0)], None),
        ("ties of files on the GPU", [_row("ties, files, without start", backend="cuda", times_bound=1.2)], True),
        ("ties of files on the GPU", [_row("ties, files, without start", backend="cpu", times_bound=1.2)], None),
        ("ties: mergekit", [_row("ties"), _row("ties", "mergekit", "", ms=51.0)], True),
        ("slerp: mergekit", [_row("slerp", ms=2.0), _row("slerp", "mergekit", "", ms=9.0)], False),
        ("linear: mergekit", [_row("linear"), _row("linear", "mergekit", "", ms=9.0, shape=1)], None),
    ],
)
def test_goals_are_computed_from_the_rows(tmp_path, wanted, rows, met):
    verdicts = _verdicts(tmp_path, *rows)
    assert [verdict for goal, verdict in verdicts.items() if goal.startswith(wanted)] == [met]


def _boosted(tool: str, ms: float, error: float = 1e-6, op: str = "subspace_boost", shape: str = "8192x8192"):
    return {"op": op, "tool": tool, "shape": shape, "ms": str(ms), "error": str(error)}


@pytest.mark.parametrize(
    ("wanted", "rows", "met"),
    [
        ("boosting a matrix", [_boosted("fastmerge", 1), _boosted("torch", 51)], True),
        (
            "boosting a matrix",
            [_boosted("fastmerge", 2), _boosted("fastmerge, triton", 1), _boosted("torch", 51)],
            True,
        ),
        # What is faster and less exact does not count.
        ("boosting a matrix", [_boosted("fastmerge", 1, 2e-6), _boosted("torch", 51)], False),
        ("boosting a matrix", [_boosted("fastmerge", 2), _boosted("fastmerge fast", 1), _boosted("torch", 51)], False),
        # The worst shape decides.
        (
            "boosting a matrix",
            [
                _boosted(tool, ms, shape=f"{n}x8192")
                for n, far in ((8192, 60), (28672, 40))
                for tool, ms in (("fastmerge", 1), ("torch", far))
            ],
            False,
        ),
        ("boosting a matrix", [_boosted("fastmerge", 1)], None),
        (
            "boosting a mixture",
            [_boosted(t, ms, op="subspace_boost, experts") for t, ms in (("fastmerge", 1), ("torch", 199))],
            False,
        ),
        ("boosting a 70B", [_boosted("fastmerge", 79e3, op="subspace_boost, 70B")], True),
        ("boosting a 70B", [_boosted("fastmerge", 81e3, op="subspace_boost, 70B")], False),
    ],
)
def test_spectral_goals_are_computed_from_the_rows(wanted, rows, met):
    verdicts = {goal.wanted: goal.met for goal in goals.spectral_goals(rows)}
    assert [verdict for goal, verdict in verdicts.items() if goal.startswith(wanted)] == [met]


def test_without_rows_no_goal_is_met(tmp_path):
    assert set(_verdicts(tmp_path).values()) == {None}
    assert {goal.met for goal in goals.spectral_goals([])} == {None}
    assert goals.report(tmp_path / "missing.csv").startswith("no rows\nnot measured")


@pytest.mark.compiled
def test_what_the_sanitizer_runs(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["verify", "--device", "cpu", "65"])
    assert verify.main() == 0
    assert "weighted_sum of 65 elements: cpu" in capsys.readouterr().out


@pytest.mark.compiled
def test_a_wrong_result_is_not_timed(tmp_path, monkeypatch, capsys):
    case = operations.CASES[0]
    assert case.name == "weighted_sum"
    monkeypatch.setitem(inventory.CALLS, "weighted_sum", _wrong)
    monkeypatch.setattr(operations, "CASES", (case,))
    bench = Bench(tmp_path / "rows.csv", check=True)
    operations.run(bench)
    assert "weighted_sum: cpu differs from the reference; 3 inputs of 301 torch.bfloat16" in capsys.readouterr().out
    assert ",weighted_sum,fastmerge," not in (tmp_path / "rows.csv").read_text()
    assert bench.failures > 0


def _wrong(x: inventory.Inputs, backend: str) -> Tensor:
    return x.out.copy_(x.tensors[0] if backend == "cpu" else x.tensors[1])


@pytest.mark.parametrize("method", ["ties", "linear", "dare_ties"])
def test_streaming_through_a_device(tmp_path, monkeypatch, method):
    """The streamed merge, verified, on a device whose memory is its own."""
    driver = compute_on_mirrors(monkeypatch)
    monkeypatch.setattr(streamed, "choose", running.choose)
    monkeypatch.setattr(streamed, "METHODS", (method,))
    bench = Bench(tmp_path / "rows.csv", check=True)
    streamed.run(bench)
    assert bench.failures == 0
    assert driver.uploaded > driver.downloaded > 0


class _RefuseMeta(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        assert not (isinstance(result, Tensor) and result.is_meta), f"{func} makes a tensor where it falls"
        return result


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.method)
def test_peers_stay_on_the_device(case):
    tensors = case.shaped([torch.randn(8192).bfloat16() for _ in range(case.inputs)])
    with torch.device("meta"), _RefuseMeta():
        MERGES[case.method](tensors, **case.values)
