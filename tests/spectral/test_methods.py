"""Spectral merge methods against their formulas in float64, and the identities that these imply."""

from __future__ import annotations

import pytest
import torch
from deltas import boost_oracle, make_delta, relative_error
from sources import Chunked

from fastmerge import functional, merge_state_dicts
from fastmerge.kernels import use_backend
from fastmerge.methods import Group, get_method
from fastmerge.methods._deltas import merged_delta
from fastmerge.methods._spectral import is_spectral
from fastmerge.steps.driver import merge_source
from fastmerge.steps.source import Resident

SPECTRAL = ["iso_c", "iso_cts", "task_arithmetic_sb", "ties_sb", "tsvm"]
LAYER = "model.layers.0.mlp.up_proj.weight"
WEIGHTS = [0.5, 1.0, -0.25]

# A float32 decomposition of these deltas is off by a few 1e-6 (kernels/spectral), and the sum with the base rounds once
# more: 2^-24 of a base five times as large.
ERROR = 2e-5


def fine_tunes(generator, shape=(96, 64), models=3, kind="low_rank_noise"):
    """Return a base and fine-tunes of it in bfloat16, as checkpoints hold them."""
    base = (0.02 * torch.randn(shape, generator=generator)).bfloat16()
    return base, [(base.float() + make_delta(kind, *shape, generator)).bfloat16() for _ in range(models)]


def merge(method, base, tensors, name=LAYER, **parameters):
    return functional.merge_tensors(base, tensors, method=method, name=name, dtype=torch.float32, **parameters)


def deltas_of(base, tensors):
    return [tensor.double() - base.double() for tensor in tensors]


def svd(delta):
    return torch.linalg.svd(delta.double(), full_matrices=False)


def flat(delta):
    u, s, vh = svd(delta)
    return s.mean() * u @ vh


def orthogonalized(deltas):
    """TSV-M in float64, from its definition."""
    svds = [svd(delta) for delta in deltas]
    rank = min(deltas[0].shape) // len(deltas)

    def polar(blocks):
        u, _, vh = torch.linalg.svd(torch.cat(blocks, dim=1), full_matrices=False)
        return u @ vh

    left, right = polar([u[:, :rank] for u, _, _ in svds]), polar([vh[:rank].mT for _, _, vh in svds])
    return (left * torch.cat([s[:rank] for _, s, _ in svds])) @ right.mT


@pytest.mark.parametrize("shape", [(96, 64), (48, 112), (80, 80)], ids=str)
@pytest.mark.parametrize("beta", [0.0, 0.2, 0.6])
def test_task_arithmetic_boosted(shape, beta, generator):
    base, tensors = fine_tunes(generator, shape)
    zero, deltas = base.float() * 0, [tensor.float() - base.float() for tensor in tensors]
    for weights, how in ((WEIGHTS, {"lambda_": 1.5}), ([1, 2, 1], {"normalize": True})):
        plain = merge("task_arithmetic", zero, deltas, weight=weights, **how)
        shares = torch.tensor(weights) * (how.get("lambda_") or 0.25)
        total = sum(w * d for w, d in zip(shares.tolist(), deltas_of(base, tensors), strict=True))
        assert relative_error(plain, total) < 2e-7
        merged = merge("task_arithmetic_sb", base, tensors, weight=weights, beta=beta, **how)
        exact = boost_oracle(plain.double(), beta)[0]
        # A draw that is nearly singular goes to the float32 SVD, and costs what it costs there.
        peer = relative_error(boost_oracle(plain, beta, torch.float32)[0], exact)
        assert relative_error(merged.double() - base.double(), exact) < max(ERROR, 1.5 * peer)


@pytest.mark.parametrize("density", [1.0, 0.4])
def test_ties_is_boosted_after_the_divisor_and_lambda(density, generator):
    base, tensors = fine_tunes(generator)
    plain = merge("ties", base.float() * 0, [t.float() - base.float() for t in tensors], weight=1, density=density)
    merged = merge("ties_sb", base, tensors, weight=1, density=density, lambda_=0.7)
    assert relative_error(merged.double() - base.double(), boost_oracle(0.7 * plain.double(), 0.2)[0]) < ERROR


@pytest.mark.parametrize("shape", [(96, 64), (48, 112)], ids=str)
def test_iso_c(shape, generator):
    base, tensors = fine_tunes(generator, shape)
    deltas = deltas_of(base, tensors)
    merged = merge("iso_c", base, tensors, lambda_=0.5)
    assert relative_error(merged.double() - base.double(), 0.5 * flat(sum(deltas))) < ERROR
    merged = merge("iso_c", base, tensors, weight=WEIGHTS)
    assert (
        relative_error(merged.double() - base.double(), flat(sum(map(torch.mul, deltas, map(torch.tensor, WEIGHTS)))))
        < ERROR
    )


@pytest.mark.parametrize("shape", [(96, 72), (72, 144)], ids=str)
def test_tsvm(shape, generator):
    base, tensors = fine_tunes(generator, shape)
    deltas = deltas_of(base, tensors)
    expected = orthogonalized(deltas)
    merged = merge("tsvm", base, tensors, lambda_=0.5)
    # The polar factors of almost dependent vectors double the error or more.
    assert relative_error(merged.double() - base.double(), 0.5 * expected) < 1e-4
    swapped = merge("tsvm", base, tensors[::-1], lambda_=0.5)
    assert relative_error(swapped.double() - base.double(), 0.5 * expected) < 1e-4
    weighted = merge("tsvm", base, tensors, weight=WEIGHTS)
    expected = orthogonalized([w * d for w, d in zip(WEIGHTS, deltas, strict=True)])
    assert relative_error(weighted.double() - base.double(), expected) < 1e-4


def test_tsvm_counts_the_models_that_moved(generator):
    base, tensors = fine_tunes(generator, (96, 72))
    two = merge("tsvm", base, tensors[:2])
    assert torch.equal(merge("tsvm", base, [*tensors[:2], base]), two)
    assert torch.equal(merge("tsvm", base, tensors, weight=[1, 1, 0]), two)
    one = merge("tsvm", base, tensors[:1])
    assert relative_error(one.double() - base.double(), *deltas_of(base, tensors[:1])) < ERROR
    few = merge("tsvm", base[:2].contiguous(), [t[:2].contiguous() for t in tensors])
    assert (
        relative_error(few.double() - base[:2].double(), sum(deltas_of(base[:2], [t[:2] for t in tensors])) / 3) < 1e-5
    )


@pytest.mark.parametrize(
    ("method", "beta", "expected"),
    [
        ("task_arithmetic_sb", 0.5, (8, 8, 8, 8, 8)),
        ("task_arithmetic_sb", 0.6, (8, 4, 4, 4, 4)),
        ("ties_sb", 0.8, (8, 4, 2, 2, 2)),
        ("ties_sb", 1.0, (8, 4, 2, 1, 1)),
        ("iso_c", None, (3.2,) * 5),
        ("tsvm", None, (8, 4, 2, 1, 1)),
    ],
)
def test_toy_spectra(method, beta, expected, generator):
    base = torch.zeros(5, 5)
    parameters = {} if beta is None else {"beta": beta, "weight": 1}
    merged = merge(method, base, torch.diag(torch.tensor([8.0, 4, 2, 1, 1])), **parameters)
    assert torch.allclose(merged, torch.diag(torch.tensor(expected)).float(), atol=1e-5)


@pytest.mark.parametrize("method", SPECTRAL)
def test_lambda_commutes(method, generator):
    base, tensors = fine_tunes(generator, (72, 48))
    base, tensors = torch.zeros_like(base), [t - base for t in tensors]
    weight = {"weight": 1} if method.endswith("sb") else {}
    once = merge(method, base, tensors, **weight)
    assert relative_error(merge(method, base, tensors, **weight, lambda_=-0.3), -0.3 * once) < ERROR
    assert torch.equal(merge(method, base, tensors, **weight, lambda_=0), base.float())


@pytest.mark.parametrize("method", SPECTRAL)
@pytest.mark.parametrize("null_space", ["keep", "reference"])
def test_zero_deltas_return_the_base(method, null_space, generator):
    base = torch.randn(24, 16, generator=generator)
    assert torch.equal(merge(method, base, [base, base], weight=1, null_space=null_space), base)


@pytest.mark.parametrize("method", SPECTRAL)
def test_the_same_inputs_give_the_same_bits_on_every_backend(method, generator):
    base, tensors = fine_tunes(generator)
    parameters = {"weight": WEIGHTS} | ({"density": 0.5} if method == "ties_sb" else {})
    first = merge(method, base, tensors, **parameters)
    assert torch.equal(merge(method, base, tensors, **parameters), first)
    # Deltas are formed element by element, so that the decomposition meets the same bits.
    with use_backend("reference"):
        assert torch.equal(merge(method, base, tensors, **parameters), first)
    assert torch.equal(
        functional.merge_tensors(base, tensors, method=method, name=LAYER, **parameters), first.bfloat16()
    )


@pytest.mark.parametrize(("method", "plain"), [("task_arithmetic_sb", "task_arithmetic"), ("ties_sb", "ties")])
def test_other_tensors_are_merged_by_the_base_method(method, plain, generator):
    base, tensors = fine_tunes(generator)
    parameters = {"weight": WEIGHTS, "density": 0.5, "lambda_": 0.8}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(merge(method, base, tensors, name, **parameters), merge(plain, base, tensors, **parameters))
    vectors = base[0], [t[0] for t in tensors]
    assert torch.equal(merge(method, *vectors, **parameters), merge(plain, *vectors, **parameters))


@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "knots", "tsvm"])
def test_other_tensors_get_the_mean(method, generator):
    base, tensors = fine_tunes(generator)
    mean = merge("task_arithmetic", base, tensors, weight=[2, 1, 1], normalize=True)
    assert torch.equal(merge(method, base, tensors, "lm_head.weight", weight=[2, 1, 1]), mean)


@pytest.mark.parametrize("method", SPECTRAL)
def test_experts_are_taken_one_by_one(method, generator):
    base = torch.randn(3, 40, 32, generator=generator)
    tensors = [base + 0.01 * torch.randn(3, 40, 32, generator=generator) for _ in range(2)]
    merged = merge(method, base, tensors, "model.layers.3.mlp.experts.down_proj", weight=1)
    for i in range(3):
        assert torch.equal(merged[i], merge(method, base[i], [t[i] for t in tensors], weight=1))


@pytest.mark.parametrize("name", [
    "model.layers.0.self_attn.q_proj.weight", "model.layers.11.mlp.down_proj.weight",
    "model.layers.1.mlp.experts.7.gate_proj.weight", "model.layers.1.block_sparse_moe.experts.0.w2.weight",
    "transformer.h.3.attn.c_attn.weight", "gpt_neox.layers.0.attention.query_key_value.weight",
    "bert.encoder.layer.0.attention.self.query.weight", "encoder.layer.0.output.dense.weight",
    "encoder.block.0.layer.0.SelfAttention.q.weight", "visual.transformer.resblocks.0.attn.in_proj_weight",
    "blocks.0.attn.qkv.weight", "model.language_model.layers.0.self_attn.qkv_proj.weight",
])  # fmt: skip
def test_projections_are_matrices(name):
    assert is_spectral(Group(name, (8, 4), 1), "attn_mlp")


@pytest.mark.parametrize(("name", "shape"), [
    ("model.embed_tokens.weight", (8, 4)), ("lm_head.weight", (8, 4)), ("model.layers.0.input_layernorm.weight", (8,)),
    ("model.layers.0.self_attn.q_proj.bias", (8,)), ("pooler.dense.weight", (8, 4)), ("transformer.wte.weight", (8, 4)),
    ("model.layers.0.mlp.gate.weight", (8, 4)), ("patch_embed.proj.weight", (8, 3, 2, 2)),
    ("model.layers.0.self_attn.q_proj.weight", (0, 4)), ("backbone.layers.0.mixer.conv1d.weight", (8, 1, 4)),
])  # fmt: skip
def test_others_are_not(name, shape):
    assert not is_spectral(Group(name, shape, 1), "attn_mlp")
    assert is_spectral(Group(name, shape, 1), "all") == (shape == (8, 4))


def test_merged_delta_is_exact_in_any_block(generator, monkeypatch):
    base = torch.randn(5, 7, generator=generator).bfloat16()
    tensors = [torch.randn(5, 7, generator=generator).bfloat16() for _ in range(2)]
    values = {"weight": (0.3, 0.7), "normalize": True, "lambda": 0.1, "matrices": "attn_mlp"}
    step = get_method("task_arithmetic").merge(Group("w", (5, 7), 2, values))
    delta = merged_delta(step, base, tensors)
    d = [t.float() - base.float() for t in tensors]
    assert torch.equal(delta.view(5, 7), (d[0] * 0.3 + d[1] * 0.7) / (torch.tensor(0.3) + torch.tensor(0.7)) * 0.1)
    monkeypatch.setattr("fastmerge.methods._deltas.BLOCK", 3)
    assert torch.equal(merged_delta(step, base, tensors), delta)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", SPECTRAL)
def test_nan_and_infinity_are_refused(method, bad):
    spoilt = torch.ones(4, 4)
    spoilt[2, 1] = bad
    with pytest.raises(ValueError, match=r"layers\.0.*: a delta holds NaN or infinity"):
        merge(method, torch.zeros(4, 4), [torch.ones(4, 4), spoilt], weight=1)


def test_parts_of_a_matrix_are_refused(generator):
    base, tensors = fine_tunes(generator)
    method = get_method("iso_c")
    values = {"weight": (1.0,) * 3, "lambda": 1.0, "matrices": "all", "null_space": "keep"}
    group = Group("a.weight", (96, 64), 3, values)
    with pytest.raises(ValueError, match=r"a\.weight: iso_c needs the whole tensor at once"):
        merge_source(method, group, Chunked(base, tensors), torch.empty(96, 64))
    apply = method.merge(group)
    (chunk,) = Resident(base[:48], [t[:48] for t in tensors]).chunks()
    with pytest.raises(ValueError, match=r"a\.weight: a spectral merge needs all 6144 elements at once"):
        apply(torch.empty(48, 64), chunk)


def test_state_dicts(generator):
    base, tensors = fine_tunes(generator, models=2)
    models = [{LAYER: t, "lm_head.weight": t.clone(), "norm.weight": t[0].clone()} for t in (base, *tensors)]
    merged = merge_state_dicts(models[0], models[1:], method="ties_sb", weight=0.5, density=0.5)
    for name, like in models[0].items():
        inputs = [model[name] for model in models[1:]]
        expected = functional.merge_tensors(like, inputs, method="ties_sb", name=name, weight=0.5, density=0.5)
        assert torch.equal(merged[name], expected)
    assert not torch.equal(merged[LAYER], merged["lm_head.weight"])
