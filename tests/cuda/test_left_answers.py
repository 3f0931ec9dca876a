"""Merges whose answers stay on the device: every bit as with numbers, one wait, and again where one was not found."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import same_bits
from parameter_values import example

from fastmerge import kernels
from fastmerge.kernels import _sums, answers
from fastmerge.kernels._cuda import select as hooks
from fastmerge.methods import all_methods, configure, get_method
from fastmerge.steps import driver
from fastmerge.steps.driver import Job, merge_on_device, merge_source
from fastmerge.steps.source import Resident

B, F, H = torch.bfloat16, torch.float32, torch.float16
# The third is larger than the sample of a selection.
SIZES = [(5,), (0,), (2, 8500), (17, 31), (1,)]
LEAVING = sorted(name for name in all_methods() if get_method(name).leaves)
ABSENT = {"epsilon": 0.1, "rescale": True}


def _jobs(name, generator, device, dtypes=(B, B, B, B), semantics=None, sizes=SIZES) -> list[Job]:
    """Jobs of a method; outputs hold NaN."""
    method = get_method(name)
    known = method.parameters_of(semantics or method.semantics[0])
    given = {p.name: ABSENT.get(p.name, example(p)) for p in known}
    configured = configure(method, base=True, models=3, semantics=semantics, seed=3, parameters=given)
    jobs = []
    for i, shape in enumerate(sizes):
        base = torch.randn(shape, generator=generator)
        tensors = [(base + 0.1 * torch.randn(shape, generator=generator)).to(dtype) for dtype in dtypes[1:]]
        source = Resident(base.to(dtypes[0]).to(device), tuple(t.to(device) for t in tensors))
        out = torch.full(shape, float("nan"), dtype=dtypes[0], device=device)
        jobs.append(Job(configured.method, configured.group(f"x.{i}.weight", shape), source, out))
    return jobs


def _expected(job: Job) -> torch.Tensor:
    """The merge on the processor, by the reference."""
    source = Resident(job.source.base.cpu(), tuple(tensor.cpu() for tensor in job.source.tensors))
    out = torch.empty_like(job.out, device="cpu")
    with kernels.use_backend("reference"):
        merge_source(job.method, job.group, source, out)
    return out


@pytest.fixture
def waits(monkeypatch):
    """Names of the modules that download."""
    seen = []
    for module in (_sums, hooks, answers):
        download = module.download
        monkeypatch.setattr(
            module, "download", lambda t, d=download, n=module.__name__: seen.append(n.rpartition(".")[2]) or d(t)
        )
    return seen


@pytest.mark.parametrize("name", LEAVING)
@pytest.mark.parametrize(("dtypes", "window"), [((B,) * 4, 1), ((H, B, F, H), 1 << 20)], ids=str)
def test_the_bits_of_numbers(device, generator, monkeypatch, waits, name, dtypes, window):
    """Of tensors alone and of windows: in the kernels of one tensor, and of tables."""
    monkeypatch.setattr(driver, "WINDOW_BYTES", window)
    jobs = _jobs(name, generator, device, dtypes)
    expected = [_expected(job) for job in jobs]
    waits.clear()
    merge_on_device(jobs)
    assert waits == ["answers"]
    assert all(same_bits(job.out.cpu(), want) for job, want in zip(jobs, expected, strict=True))


@pytest.mark.parametrize("semantics", ["peft", "sd-mecha"])
def test_other_definitions(device, generator, semantics):
    jobs = _jobs("ties", generator, device, semantics=semantics)
    expected = [_expected(job) for job in jobs]
    merge_on_device(jobs)
    assert all(same_bits(job.out.cpu(), want) for job, want in zip(jobs, expected, strict=True))


@pytest.mark.parametrize("name", ["ties", "breadcrumbs"])
def test_a_sample_that_misled(device, generator, monkeypatch, name):
    """In place: what the kernels left alone is merged again from what it was."""
    monkeypatch.setattr(hooks, "DEVIATIONS", -0.25)
    again = []
    monkeypatch.setattr(driver, "merge_source", lambda *a: again.append(a[1].name) or merge_source(*a))
    jobs = _jobs(name, generator, device, dtypes=(F,) * 4)
    jobs = [Job(job.method, job.group, job.source, job.source.base) for job in jobs]
    expected = [_expected(job) for job in jobs]
    merge_on_device(jobs)
    assert again == ["x.2.weight"]
    assert all(same_bits(job.out.cpu(), want) for job, want in zip(jobs, expected, strict=True))


@pytest.mark.parametrize("name", ["ties", "dare_ties", "breadcrumbs"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38], ids=str)
def test_deltas_that_are_not_finite(device, generator, value, name):
    jobs = _jobs(name, generator, device, sizes=[(20,), (300,)])
    job = jobs[1]
    job.source.tensors[1][77] = value
    job.source.base[77] = -value
    with pytest.raises(ValueError) as expected:
        _expected(job)
    with pytest.raises(ValueError) as found:
        merge_on_device(jobs)
    assert str(found.value) == str(expected.value)
    assert job.out.isnan().all() and not jobs[0].out.isnan().any()


def test_most_elements_are_nan(device, generator):
    """Boundaries among the NaNs."""
    jobs = _jobs("magnitude_prune", generator, device, dtypes=(F,) * 4, sizes=[(17_000,), (300,)])
    for job in jobs:
        job.source.tensors[0][: job.out.numel() * 3 // 4] = torch.nan
    expected = [_expected(job) for job in jobs]
    merge_on_device(jobs)
    assert all(same_bits(job.out.cpu(), want) for job, want in zip(jobs, expected, strict=True))


def test_a_boundary_of_another_device_is_refused(device):
    base, there = torch.zeros(4, device=device), torch.zeros(1, 3, dtype=torch.int64, device="meta")
    keep = kernels.keep_top(kernels.FoundBoundary(there, 0))
    with pytest.raises(ValueError, match=r"keeps\[0\] has a boundary on meta, tensors\[0\] is on"):
        kernels.sparse_merge(base, base, [base], factors=[1.0], keeps=[keep])
