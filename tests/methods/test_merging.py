"""Many tensors at once: every bit as one at a time, in windows, in lockstep, and ahead of the answers."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from parameter_values import example

from fastmerge.kernels import GRID, _download
from fastmerge.methods import all_methods, configure, get_method
from fastmerge.steps import driver as merging
from fastmerge.steps import survey
from fastmerge.steps.driver import Job, merge_on_device, merge_source, merge_sources
from fastmerge.steps.source import Resident
from fastmerge.steps.survey import Boundaries

SIZES = [(5,), (64, 48), (0,), (GRID + 3,), (1,), (48, 64), (3, 7)]


def make_jobs(name, generator, dtype=torch.bfloat16, sizes=SIZES, **switched) -> list[Job]:
    """Return jobs of a method over tensors of ``sizes``; outputs hold NaN. ``switched`` are values of parameters."""
    method = get_method(name)
    with_base = method.base != "ignored"
    models = method.inputs[1] or 3
    known = method.parameters_of(method.semantics[0])
    given = {p.name: example(p) for p in known} | ({"matrices": "all"} if "matrices" in {p.name for p in known} else {})
    configured = configure(method, base=with_base, models=models, semantics=None, seed=3, parameters=given | switched)
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
def test_many_are_as_one_at_a_time(name, window, generator, monkeypatch):
    monkeypatch.setattr(merging, "WINDOW_BYTES", window)
    jobs = make_jobs(name, generator)
    if any(job.method.censuses(job.group) for job in jobs):
        pytest.skip(f"{name} asks about the whole model: another set of tensors is another merge")
    expected = alone(jobs)
    merge_sources(jobs)
    assert all(torch.equal(job.out, want) for job, want in zip(jobs, expected, strict=True))


@pytest.mark.parametrize("name", ["linear", "slerp", "ties", "dare_ties"])
@pytest.mark.parametrize("ahead", [1, 2, 9])
def test_windows_ahead_of_the_answers(name, ahead, generator):
    jobs = make_jobs(name, generator)
    expected = alone(jobs)
    merging._merge_windows([[job] for job in jobs], ahead)
    assert all(torch.equal(job.out, want) for job, want in zip(jobs, expected, strict=True))


def test_a_window_asks_before_an_earlier_one_is_answered(generator, monkeypatch):
    events = []

    def start_all(surveys, sources):
        number = len(events)
        events.append(f"ask {len(surveys)}")
        answers = [survey.run(source) for survey, source in zip(surveys, sources, strict=True)]
        return lambda: events.append(f"answer {number}") or answers

    monkeypatch.setattr(Boundaries, "start_all", start_all)
    jobs = make_jobs("ties", generator, sizes=[(10,), (20,), (30,)])
    merging._merge_windows([jobs[:1], jobs[1:2], jobs[2:]], ahead=1)
    assert events == ["ask 1", "ask 1", "answer 0", "ask 1", "answer 1", "answer 3"]


def test_several_devices_are_driven_at_once(generator, monkeypatch):
    job = make_jobs("linear", generator, sizes=[(3,)])[0]
    jobs = [job, replace(job, out=torch.empty(3, device="meta"))]
    together = threading.Barrier(2, timeout=600)

    def merge(jobs):
        together.wait()
        assert not torch.is_grad_enabled()
        raise ValueError(f"stop on {jobs[0].out.device}")

    monkeypatch.setattr(merging, "merge_on_device", merge)
    with pytest.raises(ValueError, match="stop on cpu"):
        merge_sources(jobs)


def test_equal_questions_are_asked_together(generator, monkeypatch):
    asked = []
    start_all = Boundaries.start_all
    monkeypatch.setattr(
        Boundaries, "start_all", lambda surveys, sources: asked.append(len(surveys)) or start_all(surveys, sources)
    )
    monkeypatch.setattr(merging, "WINDOW_BYTES", 1 << 30)
    merge_on_device(make_jobs("ties", generator))
    # All but the tensors of at most one element, of which everything is kept.
    assert asked == [len(SIZES) - 2]


@pytest.mark.parametrize(
    ("name", "switched"),
    [(name, {}) for name in ("slerp", "model_stock", "nuslerp", "multislerp", "karcher", "dare_ties")]
    + [("model_stock", {"filter_wise": True}), ("nuslerp", {"nuslerp_flatten": False})]
    + [("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True})],
    ids=str,
)
def test_tables_of_many_tensors_come_in_one_download(name, switched, generator, monkeypatch):
    jobs = make_jobs(name, generator, **switched)
    expected = alone(jobs)
    downloads = []
    # As on a GPU, whose tables are not on the host.
    monkeypatch.setattr(survey, "HOST", None)
    monkeypatch.setattr(_download, "download", lambda table: downloads.append(table) or (lambda: table.clone()))
    merging._merge_windows([jobs], ahead=1)
    assert all(torch.equal(job.out, want) for job, want in zip(jobs, expected, strict=True))
    assert len(downloads) == 1


def test_a_large_tensor_is_a_window_of_its_own(generator):
    jobs = make_jobs("linear", generator, sizes=[(10,), (5000,), (10,), (400,), (400,)])
    windows = merging._windows(jobs, 3000, 9 << 20)
    assert [[len(job.out) for job in window] for window in windows] == [[10, 10, 400], [5000], [400]]


def test_windows_whose_answers_are_waited_for_are_larger(generator):
    """And what waits for nothing is never among them."""
    sizes = [(10,), (5000,), (400,), (400,)]
    jobs = [*make_jobs("model_stock", generator, sizes=sizes), *make_jobs("linear", generator, sizes=sizes)]
    windows = merging._windows([jobs[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)], 3000, 9 << 20)
    found = [[(job.method.name, len(job.out)) for job in window] for window in windows]
    assert found == [
        [("model_stock", n) for n in (10, 5000, 400, 400)],
        [("linear", 10), ("linear", 400)],
        [("linear", 5000)],
        [("linear", 400)],
    ]
