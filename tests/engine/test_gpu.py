"""Merges on GPUs, of files and of state dicts: the bits of the processor, in the budget, and no wait but solve's."""

from __future__ import annotations

import pytest
import torch
from checkpoint_files import write_adapter
from tiny_merges import assert_same_tensors, expected, make_merge, outputs_of, same_files

from fastmerge import merge_, merge_state_dicts
from fastmerge.devices import gpus
from fastmerge.engine import RunOptions, run
from fastmerge.engine.checksums import BLOCK
from fastmerge.errors import BudgetError, InvalidInput

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(gpus.why_none() is not None, reason=f"no GPU: {gpus.why_none()}")]

WIDE = {"hidden": 256, "inner": 640, "vocab": 768, "layers": 2}
METHODS = ["linear", "ties", "dare_ties", "task_arithmetic", "model_stock"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunk", [BLOCK, None])
def test_files(tmp_path, method, chunk):
    merge = make_merge(tmp_path, method, **WIDE)
    plan = merge.plan()
    vram = 1 << 30
    report = run(plan, merge.out, RunOptions(device="auto", vram=vram, chunk=chunk))
    assert_same_tensors(outputs_of(merge.out), expected(plan))
    assert report.devices == tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
    assert 0 < report.peak_vram <= vram
    assert report.bytes_read == plan.bytes_read


@pytest.mark.parametrize("method", ["ties", "model_stock"])
def test_files_in_the_least_budget(tmp_path, method):
    merge = make_merge(tmp_path, method, **WIDE)
    write_adapter(tmp_path / "adapter", {"model.layers.0.mlp.down_proj": (256, 640)}, rank=4)
    merge.recipe = merge.recipe.replace(f"{tmp_path}/model1", f"{tmp_path}/model1+{tmp_path}/adapter")
    plan = merge.plan()
    run(plan, tmp_path / "host")
    options = {"device": "cuda:0", "chunk": BLOCK, "threads": 2}
    with pytest.raises(BudgetError, match=r"at least \d+ \(--vram\)") as caught:
        run(plan, merge.out, RunOptions(vram=1, **options))
    vram = int(str(caught.value).split("at least ")[1].split()[0])
    report = run(plan, merge.out, RunOptions(vram=vram, **options))
    assert same_files(merge.out, tmp_path / "host")
    assert report.bytes_read > plan.bytes_read and report.peak_vram <= vram


@pytest.mark.parametrize("method", ["ties_sb", "tsvm"])
def test_whole_matrices_of_files(tmp_path, method):
    merge = make_merge(tmp_path, method, **WIDE)
    plan = merge.plan()
    vram = 4 << 30
    report = run(plan, merge.out, RunOptions(device="cuda:0", vram=vram))
    wanted = expected(plan)
    for name, found in outputs_of(merge.out).items():
        # Their last bits are those of another linear algebra library: within the rounding to bfloat16, and one more.
        torch.testing.assert_close(found, wanted[name], rtol=2**-7, atol=1e-4)
    assert report.peak_vram <= vram


def states(generator, device, models=3):
    """Return a base and models: large and small tensors, and an integer one."""
    shapes = {"embed": (4096, 256), "norm": (256,), "up": (1024, 256), "down": (256, 1024), "bias": (3,), "empty": (0,)}
    base = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}
    tuned = [
        {name: (t + 0.01 * torch.randn(t.shape, generator=generator)).bfloat16() for name, t in base.items()}
        for _ in range(models)
    ]
    for state in (base, *tuned):
        state["steps"] = torch.tensor([7])
    return base, tuned, *({n: t.to(device) for n, t in s.items()} for s in (base, *tuned))


GIVEN = {
    "task_arithmetic": {"weight": 0.5},
    "linear": {"weight": 0.5},
    "ties": {"weight": 0.5, "density": 0.3},
    "dare_ties": {"weight": 0.5, "density": 0.3},
    "breadcrumbs": {"weight": 0.5, "density": 0.3},
    "model_stock": {},
}


@pytest.mark.parametrize("method", sorted(GIVEN))
def test_state_dicts_in_place(method, generator):
    base, tuned, there, *models = states(generator, "cuda")
    host = {"base": base, "models": tuned} if method != "linear" else {"base": None, "models": tuned}
    wanted = merge_state_dicts(host["base"], host["models"], method=method, **GIVEN[method])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        merge_(there, models, method=method, **GIVEN[method])
    stream.synchronize()
    assert all(torch.equal(there[name].cpu(), tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("method", sorted(GIVEN))
@pytest.mark.parametrize("pinned", [False, True])
def test_state_dicts_of_the_host_stream_through(method, pinned, generator, monkeypatch):
    base, tuned, *_ = states(generator, "cpu")
    wanted = merge_state_dicts(None if method == "linear" else base, tuned, method=method, **GIVEN[method])
    monkeypatch.setattr("fastmerge.engine.devices.LENT_BYTES", 1 << 16)
    if pinned:
        base, *tuned = ({name: tensor.pin_memory() for name, tensor in state.items()} for state in (base, *tuned))
    into = tuned[0]
    merge_(into, tuned, base=None if method == "linear" else base, method=method, device="cuda", **GIVEN[method])
    assert all(torch.equal(into[name], tensor) for name, tensor in wanted.items())


def test_what_lies_on_a_gpu_is_not_streamed(generator):
    _, _, there, model, *_ = states(generator, "cuda")
    with pytest.raises(InvalidInput, match="device: is for tensors in the host's memory; some are on cuda:0"):
        merge_state_dicts(there, [model], method="ties", weight=0.5, density=0.3, device="cuda")


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_a_merge_that_asks_nothing_never_waits(method, generator):
    _, _, there, *models = states(generator, "cuda")
    for state in (there, *models):
        del state["steps"]  # integers are compared, which waits
    merge_(there, models, method=method, **GIVEN[method])
    before = torch.cuda.memory_stats()["allocated_bytes.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        merge_(there, models, method=method, **GIVEN[method])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # Tables of addresses at most.
    assert torch.cuda.memory_stats()["allocated_bytes.all.allocated"] - before < 1 << 20


def test_tensors_on_several_devices(generator):
    base, tuned, *_ = states(generator, "cpu")
    wanted = merge_state_dicts(base, tuned, method="ties", weight=0.5, density=0.3)
    devices = [torch.device("cpu"), *gpus.visible()]
    placed = [{n: t.to(devices[i % len(devices)]) for i, (n, t) in enumerate(s.items())} for s in (base, *tuned)]
    merged = merge_state_dicts(placed[0], placed[1:], method="ties", weight=0.5, density=0.3)
    assert len({tensor.device for tensor in merged.values()}) == len(devices)
    assert all(torch.equal(merged[name].cpu(), tensor) for name, tensor in wanted.items())
