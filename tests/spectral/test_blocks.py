"""The blocks ``boost:`` and ``lines:`` on every method on deltas, splitting by heads, and the warning about noise."""

from __future__ import annotations

import pytest
import torch
from commands import call, call_json
from deltas import boost_oracle, make_delta, relative_error
from parameter_values import example, values_of

from fastmerge import InvalidInput, functional, merge_state_dicts
from fastmerge.kernels.spectral import flatten_spectrum, subspace_boost
from fastmerge.methods import REQUIRED, Group, Layout, all_methods, get_method, why_not
from fastmerge.methods._deltas import rounding_noise
from fastmerge.methods._heads import Part, parts_of
from fastmerge.steps.apply import DeltaMerge
from fastmerge.steps.driver import solve, solve_without_data
from fastmerge.steps.source import Resident

BOOSTABLE = [name for name, method in all_methods().items() if why_not(method, "boost") is None]
LAYER = "model.layers.{}.mlp.up_proj.weight"
FIRST = LAYER.format(0)
ERROR = 2e-5


def fine_tunes(generator, shape=(48, 32), models=2, kind="low_rank_noise"):
    base = (0.02 * torch.randn(shape, generator=generator)).bfloat16()
    return base, [(base.float() + make_delta(kind, *shape, generator)).bfloat16() for _ in range(models)]


def merge(method, base, tensors, name=FIRST, **parameters):
    """Merge with what the method requires, and half of every delta where it has densities."""
    needed = {p.name: p.kind(1) for p in all_methods()[method].parameters if p.default is REQUIRED}
    if "density" in {p.name for p in all_methods()[method].parameters} and method != "task_arithmetic":
        needed["density"] = 0.5
    count = all_methods()[method].inputs[1] or len(tensors)
    return functional.merge_tensors(
        base, tensors[:count], method=method, name=name, dtype=torch.float32, **(needed | parameters)
    )


def plain_delta(method, base, tensors, **parameters):
    """Return the merged delta of a method, from deltas on a base of zeros, which lose nothing."""
    deltas = [tensor.float() - base.float() for tensor in tensors]
    return merge(method, torch.zeros_like(deltas[0]), deltas, **parameters).double()


# What arcee_fusion takes over depends on the base itself, which ``plain_delta`` replaces.
@pytest.mark.parametrize("method", [name for name in BOOSTABLE if name != "arcee_fusion"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_any_merged_delta_is_boosted(method, beta, generator):
    base, tensors = fine_tunes(generator)
    plain = plain_delta(method, base, tensors)
    expected = 0.5 * boost_oracle(plain, beta)[0] if plain.any() else plain
    merged = merge(method, base, tensors, boost={"beta": beta, "lambda": 0.5})
    assert relative_error(merged.double() - base.double(), expected) < 20 * ERROR


@pytest.mark.parametrize("method", BOOSTABLE)
def test_other_tensors_are_merged_by_the_method_alone(method, generator):
    base, tensors = fine_tunes(generator)
    assert torch.equal(
        merge(method, base, tensors, "lm_head.weight", boost={}), merge(method, base, tensors, "lm_head.weight")
    )
    assert torch.equal(merge(method, base, tensors, boost={"beta": 1}), merge(method, base, tensors))


def boosted_in_two_ways(name, generator):
    """Return the merge of ``<name>_sb``, and that of the method with the block."""
    base, tensors = fine_tunes(generator)
    parameters = {"weight": [0.5, -1.0], "density": 0.7, "lambda_": 1.5}
    yield merge(f"{name}_sb", base, tensors, beta=0.4, **parameters)
    yield merge(name, base, tensors, boost={"beta": 0.4}, **parameters)


def test_task_arithmetic_sb_is_the_block(generator):
    assert torch.equal(*boosted_in_two_ways("task_arithmetic", generator))


def test_ties_sb_is_the_block(generator):
    assert torch.equal(*boosted_in_two_ways("ties", generator))


def test_every_method_on_deltas_returns_a_step_that_blocks_can_change(generator):
    base, tensors = fine_tunes(generator, models=3)
    for name, method in all_methods().items():
        models = method.inputs[1] or 3
        group = Group(LAYER.format(1), tuple(base.shape), models, values_of(method, example, models))
        source = Resident(base if method.base == "required" else None, tuple(tensors[:models]))
        assert isinstance(solve(method, group, source), DeltaMerge) == method.adds_delta, name


def test_idempotent_and_spectral_norm_unchanged(generator):
    base, tensors = fine_tunes(generator)
    once = merge("task_arithmetic", base.float() * 0, [t.float() - base.float() for t in tensors], boost={"beta": 0.3})
    twice = merge("task_arithmetic", once * 0, [once], boost={"beta": 0.3})
    assert relative_error(twice, once) < ERROR
    total = sum(t.double() - base.double() for t in tensors)
    assert float(torch.linalg.matrix_norm(once.double(), 2) / torch.linalg.matrix_norm(total, 2)) == pytest.approx(
        1, abs=1e-5
    )


def test_lines_scales_by_depth(generator):
    names = [LAYER.format(i) for i in range(3)] + ["model.embed_tokens.weight", "lm_head.weight"]
    base = {name: 0.02 * torch.randn(12, 8, generator=generator) for name in names}
    tuned = [{name: t + 1e-3 * torch.randn(12, 8, generator=generator) for name, t in base.items()} for _ in range(2)]
    merged = merge_state_dicts(base, tuned, method="ties", weight=1, lambda_=0.5, lines={"alpha": 0.2, "beta": 0.6})
    for name, factor in zip(names, (0.2, 0.5, 0.8, 0.2, 0.2), strict=True):
        inputs = [model[name] for model in tuned]
        assert torch.equal(merged[name], merge("ties", base[name], inputs, weight=1, density=1, lambda_=0.5 * factor))
    both = {"lines": {"alpha": 0.2, "beta": 0.6}, "boost": {"beta": 0.4}}
    boosted = merge_state_dicts(base, tuned, method="ties", weight=1, **both)
    total = merge("ties", base[names[1]] * 0, [t[names[1]] - base[names[1]] for t in tuned], weight=1, density=1)
    expected = 0.5 * boost_oracle(total, 0.4)[0]
    assert relative_error(boosted[names[1]].double() - base[names[1]].double(), expected) < ERROR


def test_lines_of_a_single_layer_is_alpha():
    method = get_method("task_arithmetic+lines")
    values = {
        "weight": (1.0,),
        "normalize": False,
        "lambda": 1.0,
        "lines.alpha": 0.25,
        "lines.beta": 9.0,
        "lines.auto": False,
    }
    step = solve_without_data(method, Group("a", (4,), 1, values, layout=Layout(0, 1)))
    assert step.scale == 0.25


ATTENTION = "model.layers.2.self_attn.{}.weight"


@pytest.mark.parametrize(
    ("name", "shape", "splitting", "expected"),
    [
        (ATTENTION.format("q_proj"), (32, 16), "heads", [Part(0, 0, 32, 8)]),
        (ATTENTION.format("k_proj"), (8, 16), "heads", [Part(0, 0, 8, 2)]),
        (ATTENTION.format("o_proj"), (16, 32), "heads", [Part(1, 0, 32, 8)]),
        (ATTENTION.format("q_proj"), (32, 16), "qkv", [Part(0, 0, 32, 1)]),
        (ATTENTION.format("qkv_proj"), (48, 16), "qkv", [Part(0, 0, 32, 1), Part(0, 32, 8, 1), Part(0, 40, 8, 1)]),
        (ATTENTION.format("qkv_proj"), (48, 16), "heads", [Part(0, 0, 32, 8), Part(0, 32, 8, 2), Part(0, 40, 8, 2)]),
        ("model.layers.2.mlp.up_proj.weight", (48, 16), "heads", [Part(0, 0, 48, 1)]),
        ("bert.encoder.layer.0.attention.output.dense.weight", (16, 16), "heads", [Part(1, 0, 16, 8)]),
        ("bert.encoder.layer.0.output.dense.weight", (16, 48), "heads", [Part(0, 0, 16, 1)]),
        ("decoder.block.0.layer.0.SelfAttention.k.weight", (16, 16), "heads", [Part(0, 0, 16, 2)]),
        ("decoder.block.0.layer.2.DenseReluDense.wo.weight", (16, 16), "heads", [Part(0, 0, 16, 1)]),
    ],
)
def test_parts(name, shape, splitting, expected):
    layout = Layout(2, 4, heads=8, kv_heads=2)
    assert parts_of(Group(name, shape, 1, layout=layout), splitting, 0, 0) == expected


def test_parts_without_a_config():
    name = "visual.transformer.resblocks.0.attn.in_proj_weight"
    assert [part.start for part in parts_of(Group(name, (48, 16), 1), "qkv", 0, 0)] == [0, 16, 32]
    assert parts_of(Group(ATTENTION.format("q_proj"), (32, 16), 1), "heads", 4, 0) == [Part(0, 0, 32, 4)]
    with pytest.raises(ValueError, match=r"layers\.2.*needs the number of attention heads.*give heads and kv_heads"):
        parts_of(Group(ATTENTION.format("q_proj"), (32, 16), 1), "heads", 0, 0)
    with pytest.raises(ValueError, match="32 rows or columns are not divided by 5 heads"):
        parts_of(Group(ATTENTION.format("q_proj"), (32, 16), 1), "heads", 5, 0)


@pytest.mark.parametrize("module", ["c_attn", "query_key_value", "c_proj"])
def test_orders_of_heads_that_differ_between_models_are_refused(module):
    group = Group(f"transformer.h.0.attn.{module}.weight", (48, 48), 1, layout=Layout(0, 2, 4, 4))
    with pytest.raises(ValueError, match=rf"splitting: heads is not offered for {module}"):
        parts_of(group, "heads", 0, 0)


def test_heads_are_boosted_one_by_one(generator):
    base, tensors = fine_tunes(generator, (32, 24))
    total = sum(t.double() - base.double() for t in tensors)
    boost = {"beta": 0.3, "splitting": "heads", "heads": 4, "kv_heads": 2}
    merged = merge("task_arithmetic", base, tensors, ATTENTION.format("v_proj"), weight=1, boost=boost)
    expected = torch.cat([boost_oracle(total[:16], 0.3)[0], boost_oracle(total[16:], 0.3)[0]])
    assert relative_error(merged.double() - base.double(), expected) < ERROR
    merged = merge("task_arithmetic", base, tensors, ATTENTION.format("o_proj"), weight=1, boost=boost)
    expected = torch.cat([boost_oracle(part, 0.3)[0] for part in total.chunk(4, dim=1)], dim=1)
    assert relative_error(merged.double() - base.double(), expected) < ERROR
    merged = merge("task_arithmetic", base, tensors, ATTENTION.format("qkv_proj"), weight=1, boost=boost)
    pieces = [*total[:16].chunk(4), *total[16:24].chunk(2), *total[24:].chunk(2)]
    expected = torch.cat([boost_oracle(piece, 0.3)[0] for piece in pieces])
    assert relative_error(merged.double() - base.double(), expected) < ERROR


@pytest.mark.parametrize("method", ["svd", "exact", "accurate"])
def test_noise_is_the_share_of_raised_values_below_its_norm(method, generator):
    m, n, noise = 192, 128, 1e-3
    pure = noise * torch.randn(m, n, generator=generator)
    (info,) = subspace_boost(pure, 0.2, method=method, noise=noise)[1]
    assert info.noise > 0.5
    spectrum = torch.linalg.svdvals(pure.double())[info.k :]
    share = float((spectrum <= noise * (m**0.5 + n**0.5)).double().mean())
    # The route of products knows leading values only, and says a lower bound.
    assert info.noise <= share if method == "accurate" else info.noise == share
    (info,) = subspace_boost(pure, 0.2, method=method, noise=noise / 100)[1]
    assert info.noise == 0
    assert subspace_boost(pure, 0.2, method=method)[1][0].noise is None
    assert flatten_spectrum(pure, method=method, noise=noise)[1][0].noise > 0.4
    with pytest.raises(ValueError, match="noise is -1; expected a standard deviation"):
        subspace_boost(pure, noise=-1)


@pytest.mark.parametrize(("dtype", "warned"), [(torch.bfloat16, True), (torch.float32, False)])
def test_remark_where_most_directions_are_rounding(dtype, warned, generator):
    shape = (96, 64)
    base = (0.02 * torch.randn(shape, generator=generator)).bfloat16()
    update = 2e-3 * torch.randn(96, 2, generator=generator) @ torch.randn(2, 64, generator=generator)
    tensors = [(base.float() + update + 1e-5 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(2)]
    method = get_method("task_arithmetic+boost")
    values = {p.name: p.default for p in method.parameters} | {"weight": (1.0, 1.0), "density": (1.0, 1.0)}
    step = solve(method, Group(LAYER.format(0), shape, 2, values), Resident(base, tensors))
    assert not step.remarks
    out = torch.empty(shape)
    for chunk in Resident(base, tensors).chunks():
        step(out, chunk)
    assert bool(step.remarks) == warned


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_noise_is_that_of_rounding(dtype, generator):
    exact = [0.02 * torch.randn(200, 300, generator=generator) for _ in range(2)]
    rounded = [tensor.to(dtype) for tensor in exact]
    gains = [0.5, 2.0]
    error = sum(gain * (r.double() - e.double()) for gain, r, e in zip(gains, rounded, exact, strict=True))
    merged = torch.ones(60000)
    assert rounding_noise(rounded, gains, merged) == pytest.approx(float(error.std()), rel=0.05)
    merged[:45000] = 0
    assert rounding_noise(rounded, gains, merged) == pytest.approx(float(error.std()) / 2, rel=0.05)


def test_command_line_describes_blocks():
    for name in ("boost", "lines", "svc"):
        found = call_json("methods", name)
        text = " ".join(call("methods", name).output.split())  # as if it were not wrapped
        assert found["name"] == name and "ties" in found["methods"] and "linear" not in found["methods"]
        assert all(
            p["name"] in text and p["doc"].replace("``", "") in text and "." not in p["name"]
            for p in found["parameters"]
        )
    assert [item["blocks"] for item in call_json("methods") if item["name"] in ("linear", "ties", "ties_sb")] == [
        [], ["lines", "svc", "boost"], ["lines", "svc"],
    ]  # fmt: skip
    assert "lines, svc, boost" in " ".join(call("methods", "ties").output.split())


def test_mistakes_in_memory(generator):
    base, tensors = fine_tunes(generator)

    def problem(method="ties", base=base, **parameters):
        with pytest.raises(InvalidInput) as caught:
            functional.merge_tensors(base, tensors, method=method, weight=1, **parameters)
        return str(caught.value)

    assert "boost.betta: is no parameter of ties+boost" in problem(boost={"betta": 0.2})
    assert "boost.beta: is 2; expected a number in [0, 1]" in problem(boost={"beta": 2})
    assert "boost: is True; expected a mapping" in problem(boost=True)
    assert "lines.beta: is required by ties+lines" in problem(lines={"alpha": 1})
    assert "linear does not add a merged delta" in problem("linear", base=None, boost={})
    assert "ties_sb has it already" in problem("ties_sb", boost={})
    with pytest.raises(ValueError, match="lines needs to know the layers of the model; merge whole models"):
        functional.ties(base, tensors, weight=1, lines={"alpha": 1, "beta": 0})
