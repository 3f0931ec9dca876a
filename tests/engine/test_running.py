"""The engine end to end: the bits, the files, and what is refused."""

from __future__ import annotations

import gc
import json
import os
import stat
import threading
from functools import partial

import pytest
import torch
from checkpoint_files import write_adapter
from tiny_merges import assert_same_tensors, expected, make_merge, outputs_of, same_files

from fastmerge.engine import RunOptions, cells, run, verify
from fastmerge.engine.arena import Arena, Slot
from fastmerge.engine.checksums import BLOCK, Checksum
from fastmerge.engine.files import InputFiles, OutputFiles
from fastmerge.engine.needs import whole_bytes
from fastmerge.engine.publish import StagingFolder
from fastmerge.engine.running import _Run
from fastmerge.engine.scheduler import Scheduler
from fastmerge.engine.sizing import BUSY_BYTES, WRITTEN, Budget, divide
from fastmerge.errors import BudgetError, CheckpointError
from fastmerge.kernels import _native

# Wide enough that the large matrices are cut into several chunks of one cell.
WIDE = {"hidden": 256, "inner": 640, "vocab": 768, "layers": 1}
# Too little for batches that hold those.
SLICED = RunOptions(chunk=BLOCK, threads=2, ram=8 << 20)


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "task_arithmetic", "model_stock"])
@pytest.mark.parametrize("chunk", [BLOCK, None])
def test_bits_are_those_of_a_merge_in_memory(tmp_path, method, chunk):
    merge = make_merge(tmp_path, method, **WIDE)
    plan = merge.plan()
    report = run(plan, merge.out, RunOptions(chunk=chunk))
    assert_same_tensors(outputs_of(merge.out), expected(plan))
    assert report.tensors == len(plan.outputs)
    assert report.bytes_read == plan.bytes_read
    assert report.bytes_written == sum(output.nbytes for output in plan.outputs)


@pytest.mark.parametrize("method", ["ties", "model_stock"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes(tmp_path, method, dtype):
    merge = make_merge(tmp_path, method, dtype=dtype, **WIDE)
    plan = merge.plan()
    run(plan, merge.out, RunOptions(chunk=BLOCK))
    assert_same_tensors(outputs_of(merge.out), expected(plan))


def least_budget(plan, **options) -> int:
    """Return the budget that the error about a smaller one names."""
    with pytest.raises(BudgetError, match=r"at least \d+ ") as caught:
        run(plan, "never", RunOptions(ram=1, **options))
    return int(str(caught.value).split("at least ")[1].split()[0])


@pytest.mark.parametrize(
    ("method", "backend", "threads"),
    [("ties", "reference", 1), ("ties", "reference", 3), ("ties", None, 1), ("ties", None, 3), ("dare_ties", None, 3)],
)
def test_budget_threads_and_backend_change_no_byte(tmp_path, method, backend, threads):
    merge = make_merge(tmp_path, method, **WIDE)
    plan = merge.plan()
    run(plan, tmp_path / "roomy")
    # The least budget holds no large matrix whole: surveys read it again and again.
    options = {"threads": threads, "backend": backend, "chunk": BLOCK}
    report = run(plan, merge.out, RunOptions(ram=least_budget(plan, **options), **options))
    assert same_files(merge.out, tmp_path / "roomy")
    assert report.bytes_read > plan.bytes_read


def test_many_shards_in_and_out(tmp_path):
    merge = make_merge(tmp_path, "ties", shards=33, layers=4)
    plan = merge.plan(shard_size=20_000)
    assert len(plan.shards) > 20
    run(plan, merge.out)
    assert_same_tensors(outputs_of(merge.out), expected(plan))
    index = json.loads((merge.out / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == expected(plan).keys()


def test_empty_scalar_and_integer_tensors(tmp_path):
    extra = {"empty": torch.empty(0, 4, dtype=torch.bfloat16), "scalar": torch.tensor(3.0, dtype=torch.bfloat16)}
    merge = make_merge(tmp_path, "task_arithmetic", extra=extra)
    plan = merge.plan()
    run(plan, merge.out)
    assert_same_tensors(outputs_of(merge.out), expected(plan))


@pytest.mark.parametrize("method", ["linear", "ties"])
@pytest.mark.parametrize("budget", ["least", "roomy"])
def test_adapters_are_folded_in(tmp_path, method, budget):
    merge = make_merge(tmp_path, method, **WIDE)
    # Rows of 640 elements: chunks end inside of them.
    modules = {"model.layers.0.mlp.down_proj": (256, 640), "model.layers.0.self_attn.q_proj": (256, 256)}
    write_adapter(tmp_path / "adapter", modules, rank=4)
    merge.recipe = merge.recipe.replace(f"{tmp_path}/model1", f"{tmp_path}/model1+{tmp_path}/adapter")
    plan = merge.plan()
    assert sum(len(t.adapters) for output in plan.outputs for t in output.inputs.every) == 2
    options = {"chunk": BLOCK, "threads": 2}
    ram = least_budget(plan, **options) if budget == "least" else 1 << 30
    run(plan, merge.out, RunOptions(ram=ram, **options))
    assert_same_tensors(outputs_of(merge.out), expected(plan))
    assert verify(merge.out).ok


def test_permissions_follow_the_umask(tmp_path):
    merge = make_merge(tmp_path, "linear")
    old = os.umask(0o027)
    try:
        run(merge.plan(), merge.out)
    finally:
        os.umask(old)
    for path in merge.out.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o640, path


def test_nothing_is_left_beside_the_output(tmp_path):
    merge = make_merge(tmp_path, "linear")
    run(merge.plan(), merge.out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "model0", "model1", "model2", "out"]


def test_progress_reaches_the_total(tmp_path):
    merge = make_merge(tmp_path, "linear")
    plan = merge.plan()
    calls = []
    run(plan, merge.out, progress=lambda done, total: calls.append((done, total)))
    total = sum(output.nbytes for output in plan.outputs)
    assert calls[-1] == (total, total)
    assert calls == sorted(calls)


def test_input_that_changed_after_planning(tmp_path):
    merge = make_merge(tmp_path, "linear")
    plan = merge.plan()
    path = tmp_path / "model1" / "model.safetensors"
    os.utime(path)
    again = r"changed since the merge was planned \(its size is the same, but it was written again: 20.* not 20"
    with pytest.raises(CheckpointError, match=f"model1/model.safetensors: {again}"):
        run(plan, merge.out)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match=rf"planned \({size} bytes then, {size + 1} now\); run the merge again"):
        run(plan, merge.out)
    assert not merge.out.exists()


def test_checksum_does_not_depend_on_the_order_of_the_parts():
    data = memoryview(os.urandom(5 * BLOCK + 3))
    whole, parts = Checksum(len(data), 1), Checksum(len(data), 1)
    whole.add(0, data)
    for start in (3 * BLOCK, 0):
        parts.add(start, data[start : start + 3 * BLOCK])
    assert whole.hex() == parts.hex()
    other = Checksum(len(data), 1)
    other.add(0, memoryview(bytes(data[:-1]) + bytes([data[-1] ^ 1])))
    assert other.hex() != whole.hex()


@pytest.mark.compiled
def test_threads_limit_operations_too(tmp_path, monkeypatch):
    before = _native.cpu_extension().get_threads()
    found = []
    write = OutputFiles.write
    monkeypatch.setattr(
        OutputFiles,
        "write",
        lambda self, *args: found.append(_native.cpu_extension().get_threads()) or write(self, *args),
    )
    run(make_merge(tmp_path, "linear").plan(), tmp_path / "out", RunOptions(threads=1))
    assert set(found) == {1}
    assert _native.cpu_extension().get_threads() == before


@pytest.mark.parametrize("frozen_by_others", [False, True])
def test_the_garbage_collector_leaves_the_plan_alone_while_a_merge_works(tmp_path, monkeypatch, frozen_by_others):
    found = []
    write = OutputFiles.write
    monkeypatch.setattr(
        OutputFiles, "write", lambda self, *args: found.append(gc.get_freeze_count()) or write(self, *args)
    )
    plan = make_merge(tmp_path, "linear").plan()
    if frozen_by_others:
        gc.freeze()
    before = gc.get_freeze_count()
    try:
        run(plan, tmp_path / "out")
        after = gc.get_freeze_count()
    finally:
        gc.unfreeze()
    assert min(found) > 0
    assert after > 0 if frozen_by_others else after == before == 0


def test_no_more_memory_than_keeps_the_workers_busy(tmp_path):
    plan = make_merge(tmp_path, "ties", **WIDE).plan()
    sizes = divide(plan.outputs, Budget(8 << 30), workers=3)
    assert max(map(whole_bytes, plan.outputs)) < sizes.regions <= 3 * BUSY_BYTES
    assert sizes.slots == 3 + WRITTEN and sizes.arena == sizes.slots * sizes.slot + sizes.regions


@pytest.mark.compiled
@pytest.mark.parametrize("method", ["linear", "ties", "task_arithmetic"])
def test_cached_inputs_are_merged_by_cells(tmp_path, monkeypatch, method):
    merge = make_merge(tmp_path, method, **WIDE)
    plan, found = merge.plan(), []
    streamed = cells.streamed
    monkeypatch.setattr(cells, "streamed", lambda *args: found.append(streamed(*args)) or found[-1])
    monkeypatch.setattr(InputFiles, "probe", lambda self, path: True)
    run(plan, merge.out, SLICED)
    assert found and None not in found
    assert_same_tensors(outputs_of(merge.out), expected(plan))
    found.clear()
    run(plan, tmp_path / "plain", RunOptions(chunk=BLOCK, backend="reference"))
    assert not found
    manifests = [(out / "fastmerge.json").read_bytes() for out in (merge.out, tmp_path / "plain")]
    assert manifests[0] == manifests[1], "with the same checksums of all that was read"


@pytest.mark.compiled
def test_a_file_that_ends_while_it_is_merged_by_cells(tmp_path, monkeypatch):
    merge = make_merge(tmp_path, "linear", **WIDE)
    plan, declined = merge.plan(), []
    streamed = cells.streamed

    def late(*args):
        os.truncate(tmp_path / "model1" / "model.safetensors", 4096)
        declined.append(streamed(*args) is None)

    monkeypatch.setattr(cells, "streamed", late)
    monkeypatch.setattr(InputFiles, "probe", lambda self, path: True)
    with pytest.raises(CheckpointError, match=r"model1/model\.safetensors: ends at byte"):
        run(plan, merge.out, SLICED)
    assert any(declined) and not merge.out.exists()


def test_small_files_are_written_once_while_the_merge_works(tmp_path, monkeypatch):
    merge, found, written = make_merge(tmp_path, "linear"), [], []
    wait, looks = Scheduler._wait, iter([True])
    monkeypatch.setattr(Scheduler, "_wait", lambda self, seconds: next(looks, False) or wait(self, seconds))
    publish, write = _Run.publish, StagingFolder._write
    monkeypatch.setattr(
        StagingFolder, "_write", lambda self, name, file: written.append(name) or write(self, name, file)
    )
    monkeypatch.setattr(_Run, "publish", lambda self, journal: found.extend(written) or publish(self, journal))
    run(merge.plan(), merge.out)
    assert "config.json" in found and [*found, "fastmerge.json"] == written


def test_others_compute_while_the_disk_is_slow():
    """The writes of the first tasks end when the last task was computed, which needs a free slot, and a free thread."""
    computed, written = [], []
    last = threading.Event()

    class Unit:
        def start(self, memory):
            return True

        def stages(self):
            yield [partial(self.task, i) for i in range(6)]
            assert sorted(written) == [True] * 6

        def task(self, i, slot):
            slot.write(lambda: written.append(last.wait(20)))
            computed.append(i)
            if len(computed) == 6:
                last.set()

        def finish(self):
            written.append("finished")

    arena = Arena(1)
    Scheduler(iter([Unit()]), [Slot(arena, 0, 0) for _ in range(8)], workers=2).run(lambda: None)
    assert written == [True] * 6 + ["finished"]
