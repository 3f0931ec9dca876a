"""Many tensors at once: every bit as one at a time, in windows, in lockstep, and by the threads that feed a device."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch

from fastmerge import gpus, merging
from fastmerge.kernels import GRID
from fastmerge.merging import Job, merge_here, merge_source, merge_sources
from fastmerge.methods import all_methods, get_method
from fastmerge.methods._configure import configure
from fastmerge.source import Resident
from fastmerge.survey import Boundaries

PARAMETERS = {"weight": 0.7, "density": 0.4, "t": 0.3, "beta": 0.1, "share": 0.5, "matrices": "all"}
SIZES = [(5,), (64, 48), (0,), (GRID + 3,), (1,), (48, 64), (3, 7)]


class Branch:
    """See ``fastmerge.gpus.Branch``."""

    made: list[Branch]

    def __init__(self, device, number):
        self.device, self.number, self.joined, self.thread = device, number, False, None
        Branch.made.append(self)

    @contextlib.contextmanager
    def working(self):
        self.thread = threading.get_ident()
        yield

    def join(self):
        self.joined = True


@pytest.fixture
def branches(monkeypatch):
    Branch.made = []
    monkeypatch.setattr(gpus, "Branch", Branch)
    return Branch.made


def make_jobs(name, generator, dtype=torch.bfloat16, sizes=SIZES) -> list[Job]:
    """Return jobs of a method over tensors of ``sizes``; outputs hold NaN."""
    method = get_method(name)
    with_base = method.base != "ignored"
    models = method.inputs[1] or 3
    known = {p.name for p in method.parameters_of(method.semantics[0])}
    given = {name: value for name, value in PARAMETERS.items() if name in known}
    configured = configure(method, base=with_base, models=models, semantics=None, seed=3, parameters=given)
    jobs = []
    for i, shape in enumerate(sizes):
        base = torch.randn(shape, generator=generator)
        tensors = [(base + 0.1 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(models)]
        source = Resident(base.to(dtype) if with_base else None, tensors)
        out = torch.full(shape, float("nan"), dtype=dtype)
        jobs.append(Job(configured.method, configured.group(f"layers.{i}.mlp.up_proj.weight", shape), source, out))
    return jobs


def alone(jobs) -> list[torch.Tensor]:
    outs = [torch.full_like(job.out, float("nan")) for job in jobs]
    for job, out in zip(jobs, outs, strict=True):
        merge_source(job.method, job.group, job.source, out)
    return outs


@pytest.mark.parametrize("name", sorted(all_methods()))
@pytest.mark.parametrize("window", [1, 20_000, 1 << 30])
def test_many_are_as_one_at_a_time(name, window, generator, monkeypatch, branches):
    monkeypatch.setattr(merging, "WINDOW_BYTES", window)
    jobs = make_jobs(name, generator)
    expected = alone(jobs)
    merge_sources(jobs)
    assert all(torch.equal(job.out, want) for job, want in zip(jobs, expected, strict=True))
    assert branches == [], "tensors of the processor are merged on the thread of the caller"


@pytest.mark.parametrize("name", ["linear", "slerp", "ties", "dare_ties"])
def test_devices_are_fed_side_by_side(name, generator, monkeypatch, branches):
    monkeypatch.setattr(merging, "WINDOW_BYTES", 1000)
    queues = {torch.device("cuda", i): make_jobs(name, generator) for i in range(2)}
    expected = {device: alone(jobs) for device, jobs in queues.items()}
    merging._merge_there(queues)
    for device, jobs in queues.items():
        assert all(torch.equal(job.out, want) for job, want in zip(jobs, expected[device], strict=True))
    assert [(b.device.index, b.number) for b in branches] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(branch.joined for branch in branches)
    assert threading.get_ident() not in {branch.thread for branch in branches}


def test_the_first_error_of_a_feeder_is_raised(generator, branches):
    jobs = make_jobs("slerp", generator)
    jobs[3].source.tensors[0].fill_(float("nan"))
    with pytest.raises(ValueError, match=r"layers\.3\..*: an input holds NaN"):
        merging._merge_there({torch.device("cuda"): jobs})
    assert all(branch.joined for branch in branches)


def test_equal_questions_are_asked_together(generator, monkeypatch):
    asked = []
    run_all = Boundaries.run_all
    monkeypatch.setattr(
        Boundaries, "run_all", lambda surveys, sources: asked.append(len(surveys)) or run_all(surveys, sources)
    )
    monkeypatch.setattr(merging, "WINDOW_BYTES", 1 << 30)
    merge_here(make_jobs("ties", generator))
    # All but the tensors of at most one element, of which everything is kept.
    assert asked == [len(SIZES) - 2]


def test_a_large_tensor_is_a_window_of_its_own(monkeypatch, generator):
    monkeypatch.setattr(merging, "WINDOW_BYTES", 3 * 1000)
    jobs = make_jobs("linear", generator, sizes=[(10,), (5000,), (10,), (400,), (400,)])
    windows = merging._windows(jobs)
    assert [[len(job.out) for job in window] for window in windows] == [[10, 10, 400], [5000], [400]]
