"""Runs on devices with memories of their own: the same bytes, within two budgets, whatever fails."""

from __future__ import annotations

import contextlib
import threading
from unittest.mock import Mock

import pytest
import torch
from checkpoint_files import write_adapter
from mirrors import MirrorQueue, compute_on_mirrors
from tiny_merges import assert_same_tensors, expected, make_merge, outputs_of, same_files

from benchmarks.gpu import streamed
from benchmarks.gpu.cases import Llama
from benchmarks.kernels.cases import CASES
from fastmerge.devices import gpus
from fastmerge.engine import RunOptions, batches, needs, run, verify
from fastmerge.engine import targets as places
from fastmerge.engine.arena import PAGE
from fastmerge.engine.batches import Batch, units
from fastmerge.engine.checksums import BLOCK
from fastmerge.engine.devices import DeviceMemory
from fastmerge.engine.files import InputFiles, OutputFiles
from fastmerge.engine.sizing import PINNED_BYTES, Budget, Sizes, divide
from fastmerge.errors import BudgetError, CheckpointError, FastmergeError, OutputError
from fastmerge.kernels import use_backend

# Budgets here are those of the compiled kernels.
pytestmark = pytest.mark.compiled

# Wide enough that the large matrices are cut into several chunks of one cell.
WIDE = {"hidden": 256, "inner": 640, "vocab": 768, "layers": 1}


def least(plan, option, **budgets) -> int:
    """Return the budget that the error about a smaller one names."""
    with pytest.raises(BudgetError, match=rf"at least \d+ \(--{option}\)") as caught:
        run(plan, "never", RunOptions(**{"ram": 1 << 30, "vram": 1 << 30, "chunk": BLOCK, "threads": 2} | budgets))
    return int(str(caught.value).split("at least ")[1].split()[0])


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "model_stock", "della"])
@pytest.mark.parametrize(("devices", "vram"), [(1, 64 << 20), (3, 8 << 20)])  # all in batches; regions for matrices
def test_bits_are_those_of_a_merge_in_memory(tmp_path, monkeypatch, method, devices, vram):
    driver = compute_on_mirrors(monkeypatch, devices)
    merge = make_merge(tmp_path, method, **WIDE)
    plan = merge.plan()
    report = run(plan, merge.out, RunOptions(chunk=BLOCK, threads=4, vram=vram))
    assert_same_tensors(outputs_of(merge.out), expected(plan))
    assert report.devices == tuple(f"cpu:{i}" for i in range(devices)) and report.device_reason == "a test"
    # Every byte goes there once and comes back once.
    assert report.bytes_read == plan.bytes_read <= driver.uploaded < 1.01 * plan.bytes_read + 100_000
    assert driver.downloaded == report.bytes_written
    assert verify(merge.out).ok


@pytest.mark.parametrize("method", ["linear", "ties"])
@pytest.mark.parametrize(("threads", "vram"), [(1, 32 << 20), (3, 16 << 20)])
def test_copies_that_end_late_and_overtake_each_other_change_no_byte(tmp_path, monkeypatch, method, threads, vram):
    driver = compute_on_mirrors(monkeypatch, speed="overtaking")
    merge = make_merge(tmp_path, method, **WIDE | {"layers": 2})
    plan = merge.plan()
    run(plan, merge.out, RunOptions(chunk=BLOCK, threads=threads, vram=vram))
    assert_same_tensors(outputs_of(merge.out), expected(plan))
    assert threads > 1 or driver.passed != sorted(driver.passed), "no copy overtook another one"


def test_a_slot_that_is_used_again_too_early_is_noticed(tmp_path, monkeypatch):
    """The mirrors would find out if the engine took slots for done that are not."""
    compute_on_mirrors(monkeypatch)
    merge = make_merge(tmp_path, "linear", **WIDE | {"layers": 2})
    plan = merge.plan()
    monkeypatch.setattr(MirrorQueue, "passed", lambda self: True)
    monkeypatch.setattr(MirrorQueue, "wait", lambda self: None)
    with pytest.raises(AssertionError):
        run(plan, merge.out, RunOptions(chunk=BLOCK, threads=1, vram=32 << 20))
        assert_same_tensors(outputs_of(merge.out), expected(plan))


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_nobody_waits_for_a_device_that_keeps_up(tmp_path, monkeypatch, method):
    driver = compute_on_mirrors(monkeypatch, speed="fast")
    merge = make_merge(tmp_path, method, **WIDE | {"layers": 2})
    run(merge.plan(), merge.out, RunOptions(chunk=BLOCK, threads=1, vram=32 << 20))
    assert len(driver.passed) > 20 and driver.waits == 0


@pytest.mark.parametrize("apart", [True, False])
def test_small_tensors_of_a_shard_are_one_batch_on_a_device(tmp_path, apart):
    plan = make_merge(tmp_path, "linear", **WIDE | {"layers": 3}).plan(shard_size=3 << 20)
    sizes = Sizes(1, 1, BLOCK, slot=32 << 10, regions=0, arena=0, most=0, apart=apart)
    found = [unit._outputs for unit in units(Mock(sizes=sizes, finite=False), plan.outputs) if isinstance(unit, Batch)]
    small = [output for output in plan.outputs if output.nbytes < 4096]
    assert [output for batch in found for output in batch] == small and len(plan.shards) == 2
    # Large matrices lie between them.
    assert (len(found) == 2) == apart
    assert all(len({output.shard for output in batch}) == 1 for batch in found)


def test_batches_with_large_tensors_between_are_written_where_they_belong(tmp_path, monkeypatch):
    driver = compute_on_mirrors(monkeypatch)
    merge = make_merge(tmp_path, "ties", **WIDE | {"layers": 3})
    plan = merge.plan()
    runs = []
    part = batches._consecutive
    monkeypatch.setattr(batches, "_consecutive", lambda outputs: runs.append(part(outputs)) or runs[-1])
    report = run(plan, merge.out, RunOptions(chunk=BLOCK, threads=1, vram=32 << 20))
    assert_same_tensors(outputs_of(merge.out), expected(plan))
    assert driver.downloaded == report.bytes_written and max(map(len, runs)) > 1


class Held:
    """Files that lie in memory: engine.files.InputFiles.memory."""

    def __init__(self, monkeypatch, least: int):
        self.files: dict[str, bytearray] = {}
        self._lock = threading.Lock()  # two workers that read a file at once would have it twice
        self.given = 0
        monkeypatch.setattr(InputFiles, "memory", lambda files, *place: self.memory(*place))
        monkeypatch.setattr("fastmerge.engine.devices.LENT_BYTES", least)

    def memory(self, path: str, offset: int, nbytes: int) -> memoryview:
        with self._lock:
            if path not in self.files:
                with open(path, "rb") as file:
                    self.files[path] = bytearray(file.read())
            self.given += nbytes
        return memoryview(self.files[path])[offset : offset + nbytes]


@pytest.mark.parametrize("method", ["linear", "ties"])
@pytest.mark.parametrize(("threads", "vram"), [(1, 32 << 20), (3, 16 << 20)])
def test_memory_that_holds_the_inputs_is_lent(tmp_path, monkeypatch, method, threads, vram):
    driver = compute_on_mirrors(monkeypatch, speed="overtaking")
    held = Held(monkeypatch, least=PAGE)
    merge = make_merge(tmp_path, method, **WIDE | {"layers": 2})
    plan = merge.plan()
    read, wanted = [], InputFiles.read
    monkeypatch.setattr(InputFiles, "read", lambda self, *part: read.append(len(part[-1])) or wanted(self, *part))
    report = run(plan, merge.out, RunOptions(chunk=BLOCK, threads=threads, vram=vram))
    assert_same_tensors(outputs_of(merge.out), expected(plan))
    assert held.given + sum(read) == report.bytes_read == plan.bytes_read and held.given > sum(read)
    assert driver.uploaded == plan.bytes_read and not driver.pinned
    assert verify(merge.out).ok  # by checksums of the inputs, too


def test_memory_that_cannot_be_locked_is_copied(tmp_path, monkeypatch):
    driver = compute_on_mirrors(monkeypatch)
    held = Held(monkeypatch, least=PAGE)
    pin = driver.pin

    def refusing(device, address, nbytes):
        if held.given:
            raise BudgetError("cannot be pinned")
        pin(device, address, nbytes)

    monkeypatch.setattr(driver, "pin", refusing)
    merge = make_merge(tmp_path, "ties", **WIDE)
    plan = merge.plan()
    run(plan, merge.out, RunOptions(chunk=BLOCK, threads=1, vram=32 << 20))
    assert_same_tensors(outputs_of(merge.out), expected(plan))
    assert held.given and not driver.pinned


def test_memory_that_was_lent_is_given_back_by_a_run_that_fails(tmp_path, monkeypatch):
    driver = compute_on_mirrors(monkeypatch, speed="overtaking")
    Held(monkeypatch, least=PAGE)

    def failing(self, *args):
        assert len(driver.pinned) > 1, "something is lent"
        raise OutputError("stop")

    monkeypatch.setattr(OutputFiles, "write", failing)
    merge = make_merge(tmp_path, "linear", **WIDE | {"layers": 2})
    with pytest.raises(OutputError, match="stop"):
        run(merge.plan(), merge.out, RunOptions(chunk=BLOCK, threads=1, vram=32 << 20))
    assert not driver.pinned


def test_only_what_is_in_flight_is_pinned():
    """A 70B on a GPU of 140 GB, with 16 cores."""
    tensors = streamed.outputs(next(case for case in CASES if case.method == "ties"), Llama())
    sizes = divide(tensors, Budget(4 << 30, 120 << 30, kind="cuda"), 18)
    assert sizes.arena <= PINNED_BYTES and sizes.slots == 24 and sizes.workers == 18
    several = divide(tensors, Budget(8 << 30, 120 << 30, 4, kind="cuda"), 64)
    assert several.workers == 64 and several.slots == 88 and several.arena <= 4 * PINNED_BYTES


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes(tmp_path, monkeypatch, dtype):
    compute_on_mirrors(monkeypatch)
    merge = make_merge(tmp_path, "ties", dtype=dtype, **WIDE)
    plan = merge.plan()
    run(plan, merge.out, RunOptions(chunk=BLOCK))
    assert_same_tensors(outputs_of(merge.out), expected(plan))


@pytest.mark.parametrize("method", ["ties", "model_stock", "ties_sb"])
def test_the_least_budgets_are_kept_and_change_no_byte(tmp_path, monkeypatch, method):
    merge = make_merge(tmp_path, method, **WIDE)
    plan = merge.plan()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the last bits of a decomposition depend on it
    run(plan, tmp_path / "roomy")
    torch.set_num_threads(threads)
    compute_on_mirrors(monkeypatch)
    taken = []
    create = DeviceMemory.__init__
    monkeypatch.setattr(DeviceMemory, "__init__", lambda self, d, size: taken.append(size) or create(self, d, size))
    budgets = {"vram": least(plan, "vram", vram=1), "ram": least(plan, "ram", ram=1)}
    report = run(plan, merge.out, RunOptions(chunk=BLOCK, threads=2, **budgets))
    assert same_files(merge.out, tmp_path / "roomy")
    assert 0 < taken[0] <= budgets["vram"]
    # Matrices that do not fit whole are read again for every survey.
    assert (report.bytes_read > plan.bytes_read) == (method != "ties_sb")
    for name in budgets:
        with pytest.raises(BudgetError):
            run(
                plan,
                merge.out,
                RunOptions(chunk=BLOCK, threads=2, overwrite=True, **budgets | {name: budgets[name] - 1}),
            )


def test_a_method_that_needs_whole_tensors_is_refused_with_the_amount(tmp_path, monkeypatch):
    compute_on_mirrors(monkeypatch)
    plan = make_merge(tmp_path, "tsvm", **WIDE).plan()
    with pytest.raises(BudgetError, match=r"of each device .*\(--vram\); tsvm needs \d+ for model\.layers\.0\.mlp"):
        run(plan, tmp_path / "out", RunOptions(vram=2 << 20))
    assert not (tmp_path / "out").exists()


def test_without_a_budget_most_of_the_free_memory_is_taken(tmp_path, monkeypatch):
    compute_on_mirrors(monkeypatch, free=1000)
    with pytest.raises(BudgetError, match="the memory budget of each device of 900 bytes is too small"):
        run(make_merge(tmp_path, "ties").plan(), tmp_path / "out")


@pytest.mark.parametrize("method", ["linear", "ties", "task_arithmetic_sb"])
def test_adapters_are_folded_in(tmp_path, monkeypatch, method):
    compute_on_mirrors(monkeypatch)
    merge = make_merge(tmp_path, method, **WIDE)
    # Rows of 640 elements: chunks end inside of them.
    write_adapter(tmp_path / "adapter", {"model.layers.0.mlp.down_proj": (256, 640)}, rank=4)
    merge.recipe = merge.recipe.replace(f"{tmp_path}/model1", f"{tmp_path}/model1+{tmp_path}/adapter")
    plan = merge.plan()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    wanted = expected(plan)
    torch.set_num_threads(threads)
    run(plan, merge.out, RunOptions(chunk=BLOCK))
    assert_same_tensors(outputs_of(merge.out), wanted)


def test_empty_and_scalar_tensors(tmp_path, monkeypatch):
    compute_on_mirrors(monkeypatch)
    extra = {"empty": torch.empty(0, 4, dtype=torch.bfloat16), "scalar": torch.tensor(3.0, dtype=torch.bfloat16)}
    plan = make_merge(tmp_path, "task_arithmetic", extra=extra).plan()
    run(plan, tmp_path / "out")
    assert_same_tensors(outputs_of(tmp_path / "out"), expected(plan))


@pytest.mark.parametrize("chunk", [BLOCK, None])
def test_elements_at_odd_places_of_a_file(tmp_path, monkeypatch, chunk):
    compute_on_mirrors(monkeypatch)
    merge = make_merge(tmp_path, "ties", **WIDE)
    for path in tmp_path.glob("*/model.safetensors"):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        path.write_bytes((length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :])
    plan = merge.plan()
    run(plan, merge.out, RunOptions(chunk=chunk))
    assert_same_tensors(outputs_of(merge.out), expected(plan))


def test_a_run_that_failed_goes_on_elsewhere(tmp_path, monkeypatch):
    merge = make_merge(tmp_path, "ties", **WIDE)
    plan = merge.plan()
    run(plan, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        compute_on_mirrors(patch, 2)
        write, left = OutputFiles.write, iter(range(12))

        def failing(self, *args):
            if next(left, None) is None:
                raise OutputError("stop")
            return write(self, *args)

        patch.setattr(OutputFiles, "write", failing)
        with pytest.raises(OutputError, match="stop"):
            run(plan, merge.out, RunOptions(chunk=BLOCK, threads=2, vram=3 << 20, ram=6 << 20))
    assert run(plan, merge.out).resumed > 0
    assert same_files(merge.out, tmp_path / "undisturbed")


def test_input_that_cannot_be_read_while_another_is_copied(tmp_path, monkeypatch):
    compute_on_mirrors(monkeypatch)
    merge = make_merge(tmp_path, "linear", **WIDE)
    read = InputFiles.read

    def failing(self, path, offset, into):
        if "model1" in path:
            raise CheckpointError("stop")
        return read(self, path, offset, into)

    monkeypatch.setattr(InputFiles, "read", failing)
    with pytest.raises(CheckpointError, match="stop"):  # the mirrors refuse to unpin memory that is copied
        run(merge.plan(), merge.out, RunOptions(chunk=BLOCK, threads=1))


def test_memory_that_is_used_up_says_what_to_do(tmp_path, monkeypatch):
    compute_on_mirrors(monkeypatch)
    merge = make_merge(tmp_path, "ties")

    def out_of_memory(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("fastmerge.engine.context.merge_on_device", out_of_memory)
    with pytest.raises(BudgetError, match="cpu:0: out of memory; give --vram less than is free there"):
        run(merge.plan(), merge.out)


def test_memory_is_pinned_where_it_is_used(monkeypatch):
    """Pinning makes CUDA take memory of the current device: of GPU 0, which may be another's, unless it is told."""
    current, calls = ["cuda:0"], []

    @contextlib.contextmanager
    def change(device):
        current.append(str(device))
        yield
        current.pop()

    class Runtime:
        def cudaHostRegister(self, address, nbytes, flags):
            calls.append(("pin", address, nbytes, current[-1]))
            return 0

        def cudaHostUnregister(self, address):
            calls.append(("unpin", address, current[-1]))
            return 0

    monkeypatch.setattr(torch.cuda, "device", change)
    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    gpus.Cuda().pin(torch.device("cuda", 3), 4096, 8)
    gpus.Cuda().unpin(torch.device("cuda", 3), 4096)
    assert calls == [("pin", 4096, 8, "cuda:3"), ("unpin", 4096, "cuda:3")]


def test_devices_that_are_not_there(tmp_path):
    plan = make_merge(tmp_path, "ties").plan()
    with pytest.raises(ValueError, match="'gpu' names no devices; expected auto, cpu, cuda"):
        RunOptions(device="gpu")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(FastmergeError, match=r"--device cuda:1: .*; take --device cpu or auto"):
        run(plan, tmp_path / "out", RunOptions(device="cuda:1"))
    report = run(plan, tmp_path / "out", RunOptions(device="auto"))
    assert report.devices == ("cpu",) and report.device_reason.startswith("no GPU is used: ")


def test_which_gpus_are_taken_and_why(monkeypatch):
    monkeypatch.setattr(gpus, "why_none", lambda: None)
    monkeypatch.setattr(gpus, "visible", lambda: [torch.device("cuda", i) for i in range(3)])
    assert places.choose("cuda", None).names == ("cuda:0", "cuda:1", "cuda:2")
    assert places.choose("cuda:2,cuda:0", None).names == ("cuda:2", "cuda:0")
    with pytest.raises(FastmergeError, match=r"there is no cuda:7; this process sees cuda:0, cuda:1, cuda:2"):
        places.choose("cuda:0,cuda:7", None)
    assert places.choose("cpu", None).names == ("cpu",)
    monkeypatch.setattr(places, "why_not_compiled", lambda kind: None)
    assert places.choose("auto", None).names == ("cuda:0", "cuda:1", "cuda:2")
    monkeypatch.setattr(places, "why_not_compiled", lambda kind: f"select has no kernel on {kind}")
    assert places.choose("auto", None).why == "no GPU is used: select has no kernel on cuda"
    monkeypatch.undo()
    with use_backend("reference"):
        assert needs.why_not_compiled("cpu").endswith("has no kernel there (pinned)")


def test_torch_is_asked_for_gpus_where_a_driver_is(monkeypatch):
    monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: name)
    assert gpus.why_no_driver() is None
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert gpus.why_none() == "this torch is built without CUDA and ROCm"

    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(gpus.ctypes, "CDLL", absent)
    monkeypatch.setattr(gpus, "_OF_AMD", ("/dev/null",))
    assert gpus.why_none() == "this torch is built without CUDA and ROCm"
    monkeypatch.setattr(gpus, "_OF_AMD", ("/absent",))
    assert gpus.why_none() == "no driver of GPUs is installed (neither libcuda.so.1 nor /absent is here)"
