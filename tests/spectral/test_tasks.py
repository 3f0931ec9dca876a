"""Methods on several tasks (Iso-CTS, KnOTS, TSV compression, consensus, adapters) against their formulas in float64."""

from __future__ import annotations

import pytest
import torch
from deltas import boost_oracle, make_delta, relative_error

import fastmerge
from fastmerge import InvalidInput, functional, merge_adapters
from fastmerge.kernels import GRID
from fastmerge.kernels.spectral import flatten_spectrum, flatten_tasks, shared_basis

LAYER = "model.layers.0.mlp.up_proj.weight"
WEIGHTS = [0.5, 1.0, -0.25]


def deltas(generator, shape=(60, 48), count=3, kind="low_rank_noise"):
    return [make_delta(kind, *shape, generator) for _ in range(count)]


def lora(generator, m=40, n=56, ranks=(3, 4, 2), scale=0.05):
    return [(scale * torch.randn(m, r, generator=generator), torch.randn(r, n, generator=generator) / r) for r in ranks]


def merge(method, tensors, **parameters):
    """Merge deltas on a base of zeros."""
    return functional.merge_tensors(torch.zeros_like(tensors[0]), tensors, method=method, name=LAYER, **parameters)


def svd(matrix, dtype=torch.float64):
    return torch.linalg.svd(matrix.to(dtype), full_matrices=False)


def polar(matrix):
    u, _, vh = svd(matrix, matrix.dtype)
    return u @ vh


def iso_cts(tasks, share, dtype=torch.float64):
    """Iso-CTS in ``dtype``, from its definition."""
    tasks = [task.to(dtype) for task in tasks]
    r, count = min(tasks[0].shape), len(tasks)
    own = round((r - int(r * share)) / count)
    common = r - count * own
    u, s, vh = svd(sum(tasks), dtype)
    left, values, right = [u[:, :common]], [s[:common]], [vh[:common].T]
    for task in tasks:
        ut, st, vt = svd(task - left[0] @ left[0].T @ task, dtype)
        left, values, right = [*left, ut[:, :own]], [*values, st[:own]], [*right, vt[:own].T]
    return torch.cat(values).mean() * polar(torch.cat(left, 1)) @ polar(torch.cat(right, 1)).T


@pytest.mark.parametrize("shape", [(60, 48), (48, 72), (64, 64)], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
def test_iso_cts(shape, share, generator):
    tasks = deltas(generator, shape)
    expected = iso_cts([w * task for w, task in zip(WEIGHTS, tasks, strict=True)], share)
    merged = merge("iso_cts", tasks, weight=WEIGHTS, lambda_=1.5, common_share=share)
    assert relative_error(merged, 1.5 * expected) < 1e-4


def test_iso_cts_of_shared_directions_alone_is_iso_c(generator):
    tasks = deltas(generator)
    assert relative_error(flatten_tasks(tasks, 1.0)[0], flatten_spectrum(sum(tasks))[0]) < 1e-5
    assert relative_error(merge("iso_cts", tasks, common_share=1), merge("iso_c", tasks)) < 1e-5
    (task, *_) = tasks
    # Of a single task the triplets of the sum, and those outside them, are its own.
    assert relative_error(flatten_tasks([task], 0.5)[0], flatten_spectrum(task)[0]) < 1e-4


def test_iso_cts_counts_the_models_that_moved(generator):
    tasks = deltas(generator, count=2)
    assert torch.equal(merge("iso_cts", [*tasks, 0 * tasks[0]]), merge("iso_cts", tasks))
    assert torch.equal(merge("iso_cts", [0 * task for task in tasks]), 0 * tasks[0])


def test_iso_cts_is_equivariant_and_batched(generator):
    tasks = deltas(generator, (32, 24), 2)
    rotation = polar(torch.randn(32, 32, generator=generator)).float()
    result = flatten_tasks(tasks)[0]
    assert relative_error(flatten_tasks([rotation @ task for task in tasks])[0], rotation @ result) < 1e-4
    batch = [torch.stack([task, 2 * task]) for task in tasks]
    assert relative_error(flatten_tasks(batch)[0], torch.stack([result, 2 * result])) < 1e-5


def test_flatten_tasks_refuses_what_does_not_fit(generator):
    tasks = deltas(generator, (8, 6), 2)
    with pytest.raises(ValueError, match=r"common is 1\.5; expected a share"):
        flatten_tasks(tasks, 1.5)
    with pytest.raises(ValueError, match=r"deltas\[1\] has shape \(6, 8\), deltas\[0\] has \(8, 6\)"):
        flatten_tasks([tasks[0], tasks[1].T.contiguous()])
    with pytest.raises(ValueError, match="deltas is empty"):
        shared_basis([])


@pytest.mark.parametrize("share", [0.02, 0.25, 1.0])
def test_tsv_c(share, generator):
    (delta,) = deltas(generator, count=1)
    u, s, vh = svd(delta)
    rank = max(1, int(share * 48))
    assert relative_error(merge("tsv_c", [delta], share=share), (u[:, :rank] * s[:rank]) @ vh[:rank]) < 1e-5
    whole = functional.merge_tensors(0 * delta, delta, method="tsv_c", name="lm_head.weight", share=share)
    assert torch.equal(whole, delta)


def ties(parts, density):
    """TIES with equal weights in float64: trim, elect by the sum, mean of what agrees."""
    trimmed = []
    for part in parts:
        keep = max(1, int(density * part.numel()))
        threshold = part.abs().flatten().sort(descending=True).values[keep - 1]
        trimmed.append(torch.where(part.abs() >= threshold, part, 0.0))
    stack = torch.stack(trimmed)
    sign = torch.where(stack.sum(0) >= 0, 1.0, -1.0)
    agrees = (stack.sign() == sign).double()
    return (stack * agrees).sum(0) / agrees.sum(0).clamp(min=1)


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_knots_ties(density, generator):
    tasks = [up @ down for up, down in lora(generator)]
    u, s, vh = svd(torch.cat(tasks, dim=1))
    rank = int((s > 1e-5 * s[0]).sum())
    assert rank == 9
    parts = [(s[:rank, None] * part[:rank]) for part in vh.split(56, dim=1)]
    expected = u[:, :rank] @ ties(parts, density)
    assert relative_error(merge("knots", tasks, density=density, lambda_=0.5), 0.5 * expected) < 1e-5


def test_knots_linear_is_the_sum_and_dare_draws(generator):
    tasks = [up @ down for up, down in lora(generator)]
    total = sum(w * task.double() for w, task in zip(WEIGHTS, tasks, strict=True))
    assert relative_error(merge("knots", tasks, weight=WEIGHTS, merge="dare_linear"), total) < 1e-6
    for inner in ("dare_linear", "dare_ties"):
        drawn = [merge("knots", tasks, merge=inner, density=0.5, seed=seed) for seed in (1, 1, 2)]
        assert torch.equal(drawn[0], drawn[1])
        assert relative_error(drawn[2], drawn[0]) > 0.1


def test_shared_basis_is_that_of_the_deltas_side_by_side(generator):
    tasks = [up @ down for up, down in lora(generator)]
    basis = shared_basis(tasks)
    u = svd(torch.cat(tasks, dim=1))[0]
    assert basis.shape == (40, 9) and basis.dtype == torch.float64
    assert float(((basis.T @ u[:, :9]).abs() - torch.eye(9)).abs().max()) < 1e-5
    # One task alone stands in its own basis: its aligned part has orthogonal rows of falling norm.
    (aligned,) = [shared_basis(tasks[:1]).T @ tasks[0].double()]
    assert torch.allclose(aligned.norm(dim=1), svd(tasks[0])[1][:3], rtol=1e-6)


def consensus(tasks, mask_lambda, threshold, total):
    """The paper's masks in float64."""
    votes = sum((task.abs() > mask_lambda * (total - task).abs()).int() for task in tasks)
    return torch.where(votes >= threshold, total, 0.0)


@pytest.mark.parametrize("threshold", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("mask_lambda", [0.2, 0.6])
def test_consensus(threshold, mask_lambda, generator):
    # Multiples of 1/8 lose nothing in float32, so that equal magnitudes are equal.
    tasks = [torch.randint(-8, 9, (9, 130), generator=generator) / 8 for _ in range(3)]
    total = sum(tasks)
    merged = merge("consensus", tasks, mask_lambda=mask_lambda, threshold=threshold, lambda_=0.5)
    assert torch.equal(merged, 0.5 * consensus(tasks, mask_lambda, threshold, total))
    if threshold == 0:
        assert torch.equal(merged, merge("task_arithmetic", tasks, weight=1, lambda_=0.5))
    if threshold == 4:
        assert not merged.any()


def test_consensus_by_hand():
    # Sum 6: 4 > 0.6 * 2, 2 < 0.6 * 4. Sum 4: both agree. Sum 1: 3 > 0.6 * 2, 2 > 0.6 * 3.
    tasks = [torch.tensor([4.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, -2.0])]
    assert merge("consensus", tasks).tolist() == [0.0, 4.0, 1.0]
    assert merge("consensus", tasks, threshold=1).tolist() == [6.0, 4.0, 1.0]


def test_consensus_on_ties(generator):
    tasks = [torch.randn(7, 33, generator=generator) for _ in range(3)]
    total = merge("ties", tasks, weight=1, density=0.4, normalize=False)
    expected = consensus(tasks, 0.6, 2, total)
    assert torch.equal(merge("consensus", tasks, merge="ties", density=0.4), expected)


def test_consensus_in_blocks(generator):
    tasks = [torch.randn(2 * GRID + 5, generator=generator) for _ in range(3)]
    whole = merge("consensus", tasks, merge="ties", density=0.4)
    assert torch.equal(
        whole[GRID:], consensus(tasks, 0.6, 2, merge("ties", tasks, weight=1, density=0.4, normalize=False))[GRID:]
    )


def test_consensus_keeps_nan_and_infinity():
    tasks = [torch.tensor([float("nan"), float("inf"), 1.0]), torch.tensor([1.0, 1.0, 0.0])]
    merged = merge("consensus", tasks)
    assert merged[0].isnan() and not merged[1].isfinite() and merged[2] == 0


@pytest.mark.parametrize("weights", [1.0, WEIGHTS])
def test_adapters_are_summed_exactly(weights, generator):
    adapters = lora(generator)
    up, down = merge_adapters(adapters, method="task_arithmetic", weight=weights, scales=[2.0, 1.0, 0.5], lambda_=0.7)
    each = [weights] * 3 if isinstance(weights, float) else weights
    total = sum(0.7 * w * s * b.double() @ a.double() for w, s, (b, a) in zip(each, (2, 1, 0.5), adapters, strict=True))
    assert up.shape == (40, 9) and down.shape == (9, 56) and up.dtype == down.dtype == torch.float32
    assert relative_error(up.double() @ down.double(), total) < 1e-6


def test_adapters_are_boosted_as_their_deltas_are(generator):
    adapters = lora(generator)
    up, down = merge_adapters(adapters, method="task_arithmetic", weight=1, boost={"beta": 0.3})
    total = sum(b.double() @ a.double() for b, a in adapters)
    expected = boost_oracle(total, 0.3)[0]
    assert relative_error(up.double() @ down.double(), expected) < 1e-5


def test_core_space_ties(generator):
    adapters = lora(generator)
    left = svd(torch.cat([b for b, _ in adapters], dim=1))[0]
    right = svd(torch.cat([a for _, a in adapters], dim=0))[2].T
    cores = [left.T @ b.double() @ a.double() @ right for b, a in adapters]
    up, down = merge_adapters(adapters, method="ties", weight=1, density=0.5)
    assert relative_error(up.double() @ down.double(), left @ ties(cores, 0.5) @ right.T) < 1e-5
    for method in ("tsvm", "knots", "consensus"):
        up, down = merge_adapters(adapters, method=method)
        assert torch.linalg.matrix_rank(up.double() @ down.double()) <= 9


def test_adapters_that_do_not_fit_are_named(generator):
    adapters = lora(generator)
    wrong = [adapters[0], (adapters[1][0][:30], adapters[1][1])]
    with pytest.raises(
        InvalidInput, match=r"adapters\[1\]: has shapes \(30, 4\) and \(4, 56\); expected \(40, r\) and"
    ):
        merge_adapters(wrong, method="ties", weight=1)
    with pytest.raises(InvalidInput, match="linear does not add a merged delta"):
        merge_adapters(adapters, method="linear", weight=1)
    with pytest.raises(InvalidInput, match=r"adapters\[1\]: is no pair"):
        merge_adapters(
            [(torch.ones(3, 2), torch.ones(2, 4)), torch.ones(3, 2, 4)], method="task_arithmetic", weight=1.0
        )
    with pytest.raises(InvalidInput, match="adapters: is empty"):
        merge_adapters([], method="ties", weight=1)
    with pytest.raises(InvalidInput, match="scales: has 1 values for 3 adapters"):
        merge_adapters(adapters, method="ties", weight=1, scales=[1.0])
    assert "merge_adapters" in dir(fastmerge)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bfloat16_difference", "lora_sum", "power_one"])
def test_larger_matrices_are_as_accurate_as_a_float32_svd(kind, generator):
    tasks = deltas(generator, (512, 384), kind=kind)
    exact = iso_cts(tasks, 0.8)
    # Of almost dependent vectors the polar factors are as uncertain as the vectors.
    assert relative_error(merge("iso_cts", tasks), exact) < 2 * relative_error(
        iso_cts(tasks, 0.8, torch.float32), exact
    )
    total = sum(tasks)
    exact, _ = boost_oracle(total, 0.2)
    merged = merge("consensus", tasks, threshold=0, boost={"beta": 0.2})
    assert (
        relative_error(merged, exact) < 1.5 * relative_error(boost_oracle(total, 0.2, torch.float32)[0], exact) + 1e-6
    )
