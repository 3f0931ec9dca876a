"""Surveys give one answer however a tensor is cut, and it is the right one."""

from __future__ import annotations

import pytest
import torch
from sources import Chunked, run_sharded

from fastmerge import kernels
from fastmerge.kernels import GRID, keep_all, keep_random, keep_top
from fastmerge.steps.source import Resident
from fastmerge.steps.survey import NOTED, Boundaries, Gram, Norms, NormsAndRules

# Three full cells of the grid and a part of a fourth.
NUMEL = 3 * GRID + 1021


def tied(generator, numel=NUMEL, models=3):
    """Return a base and fine-tunes in bfloat16 whose deltas have few distinct magnitudes."""
    base = (0.02 * torch.randn(numel, generator=generator)).bfloat16()
    return base, [(base + 1e-4 * torch.randn(numel, generator=generator)).bfloat16() for _ in range(models)]


def everywhere(survey, base, tensors):
    """Run a survey on the whole tensor, on chunks of one and two cells, and on two shards."""
    return [
        survey.run(Resident(base, tensors)),
        survey.run(Chunked(base, tensors, 1)),
        survey.run(Chunked(base, tensors, 2)),
        *run_sharded(base, tensors, 1, survey.run),
        *run_sharded(base, tensors, 3, survey.run),
    ]


def test_boundaries_of_tied_magnitudes(generator):
    base, tensors = tied(generator)
    ranks = [[NUMEL // 2, NUMEL // 10], [1, NUMEL - 1, NUMEL], [0, 40_000, 7, NUMEL // 2]]
    answers = everywhere(Boundaries(ranks), base, tensors)
    assert all(answer == answers[0] for answer in answers)
    for k, wanted in enumerate(ranks):
        delta = tensors[k].float() - base.float()
        for rank, boundary in zip(wanted, answers[0][k], strict=True):
            mask = kernels.keep.kept(delta, keep_top(boundary), 0)
            order = delta.abs().sort(descending=True, stable=True).indices
            assert torch.equal(mask.nonzero().flatten(), order[:rank].sort().values)


def test_boundaries_of_distinct_magnitudes_need_no_break_index(generator, monkeypatch):
    values = torch.randperm(NUMEL, generator=generator).float()
    monkeypatch.setattr(kernels, "equal_counts", None)
    answer = Boundaries([[5, 40_000]]).run(Chunked(None, [values]))
    assert answer == Boundaries([[5, 40_000]]).run(Resident(None, [values]))


def test_boundaries_where_everything_is_equal(generator):
    ones = torch.ones(NUMEL)
    for answer in everywhere(Boundaries([[GRID, GRID + 1, 1, NUMEL - 1]]), None, [ones]):
        assert [boundary.break_index for boundary in answer[0]] == [GRID, GRID + 1, 1, NUMEL - 1]


@pytest.mark.parametrize("power", [1, 2])
def test_norms(power, generator):
    base, tensors = tied(generator)
    key = kernels.tensor_key(1, "t")
    (boundary,) = Boundaries([[1000]]).run(Resident(base, tensors[1:2]))[0]
    keeps = [keep_all(), keep_top(boundary), keep_random(key, 2, 2**31)]
    answers = everywhere(Norms(keeps, power), base, tensors)
    assert all(answer == answers[0] for answer in answers)
    for tensor, keep, (total, kept) in zip(tensors, keeps, answers[0], strict=True):
        delta = tensor.float() - base.float()
        powers = delta.double().abs() ** power
        mask = kernels.keep.kept(delta, keep, 0)
        # Both sums are in float64; the bound is that of NUMEL roundings.
        assert total == pytest.approx(powers.sum().item(), rel=NUMEL * 2**-53)
        assert kept == pytest.approx(powers[mask].sum().item(), rel=NUMEL * 2**-53)


def test_random_rules_are_drawn_once_where_a_tensor_is_whole(generator):
    base, tensors = tied(generator, NOTED + 1021)
    keeps = [keep_random(9, 0, 2**31 + 77), keep_all(), keep_random(9, 2, 2**31)]
    (norms, rules), *parted = everywhere(NormsAndRules(keeps), base, tensors)
    assert norms == Norms(keeps).run(Resident(base, tensors))
    assert parted == [(norms, keeps)] * len(parted)
    assert [rule.random for rule in rules] == [False] * 3 and rules[1] == keep_all()
    outs = [torch.full_like(base, float("nan")) for _ in range(2)]
    # From an odd element of the tensor on, as a part of a merge may be cut.
    parts = [tensor[1001:] for tensor in (base, *tensors)]
    for out, some in zip(outs, (keeps, rules), strict=True):
        kernels.sparse_merge(out[1001:], parts[0], parts[1:], factors=[0.5, 0.3, 0.2], keeps=some, offset=1001)
    assert torch.equal(outs[0][1001:], outs[1][1001:])
    few = [tensor[: NOTED - 1] for tensor in (base, *tensors)]
    assert NormsAndRules(keeps).run(Resident(few[0], few[1:]))[1] == keeps


@pytest.mark.parametrize("deltas", [True, False])
def test_gram(deltas, generator):
    base, tensors = tied(generator)
    answers = [torch.from_numpy(answer) for answer in everywhere(Gram(deltas), base, tensors)]
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    vectors = (
        [(t.float() - base.float()).double() for t in tensors] if deltas else [t.double() for t in (base, *tensors)]
    )
    stacked = torch.stack(vectors)
    bound = NUMEL * 2**-53 * (stacked.abs() @ stacked.abs().t())
    assert answers[0].shape == bound.shape
    assert ((answers[0] - stacked @ stacked.t()).abs() <= bound).all()
    assert torch.equal(answers[0], answers[0].t())


def test_surveys_of_nothing():
    empty = [torch.empty(0), torch.empty(0)]
    for source in (Resident(empty[0], empty), Chunked(empty[0], empty)):
        assert Gram().run(source).tolist() == [[0, 0], [0, 0]]
        assert Norms([keep_all()] * 2).run(source) == [(0, 0), (0, 0)]
        assert Boundaries([[0], []]).run(source)[1] == []
