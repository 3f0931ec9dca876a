"""``fastmerge.functional`` and ``merge_state_dicts``: arguments, results, and every message."""

from __future__ import annotations

import ast
import doctest
import inspect
from pathlib import Path

import pytest
import torch

from fastmerge import functional
from fastmerge.errors import InvalidInput
from fastmerge.kernels import BackendError
from fastmerge.methods import all_methods, why_not
from fastmerge.reports.stub import functional_stub
from fastmerge.state_dicts import merge_, merge_state_dicts, merging

BASE = torch.zeros(3)
ONES = torch.ones(3)


@pytest.mark.parametrize("module", [functional, merging])
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 4 and result.failed == 0


@pytest.mark.parametrize("name", sorted(all_methods()))
def test_every_method_is_a_function(name):
    function = getattr(functional, name)
    signature = inspect.signature(function)
    method = all_methods()[name]
    assert function.__name__ == name and name in dir(functional) and method.__doc__.split("\n")[0] in function.__doc__
    assert next(iter(signature.parameters)) == ("tensors" if method.base == "ignored" else "base")
    assert {"lambda_" if p.name == "lambda" else p.name for p in method.parameters} <= set(signature.parameters)
    assert {"out", "seed", "backend", "dtype", "semantics"} <= set(signature.parameters)


def test_editors_know_every_function():
    stub = Path(functional.__file__).with_suffix(".pyi")
    assert stub.read_text() == functional_stub(), f"run: fastmerge methods --update {stub}"
    functions = {node.name: node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.FunctionDef)}
    for name, method in all_methods().items():
        arguments = functions[name].args
        named = [argument.arg for argument in arguments.args + arguments.kwonlyargs]
        assert {"lambda_" if p.name == "lambda" else p.name for p in method.parameters} < set(named)
        assert ("boost" in named) == (why_not(method, "boost") is None)


def test_unknown_names_are_no_attributes():
    with pytest.raises(AttributeError, match="has no attribute 'tie'"):
        _ = functional.tie


def test_out_and_dtype():
    half = ONES.half()
    assert functional.linear([half, half], weight=1).dtype == torch.float16
    assert functional.linear([half, ONES.bfloat16()], weight=1).dtype == torch.float32
    assert functional.linear([half, ONES], weight=1, dtype=torch.bfloat16).dtype == torch.bfloat16
    out = torch.full((3,), float("nan"), dtype=torch.bfloat16)
    assert functional.linear([half, half], weight=1, out=out) is out
    assert torch.equal(out, ONES.bfloat16())
    with pytest.raises(ValueError, match=r"dtype is torch.float16, but out has dtype torch.bfloat16"):
        functional.linear(ONES, weight=1, out=out, dtype=torch.float16)
    # In place.
    assert functional.task_arithmetic(BASE.clone(), ONES, weight=2, out=(base := BASE.clone())) is base
    assert torch.equal(base, 2 * ONES)


def test_parameters_that_require_grad_are_merged():
    model = torch.nn.Linear(2, 2)
    merged = functional.linear([model.weight, model.weight], weight=1)
    assert torch.equal(merged, model.weight) and not merged.requires_grad


def test_backend_is_pinned():
    assert torch.equal(functional.linear(ONES, weight=1, backend="reference"), ONES)
    with pytest.raises(BackendError, match="cuda"):
        functional.linear(ONES, weight=1, backend="cuda")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: functional.ties(BASE, ONES, weigth=1), r"weigth: is no parameter of ties .*did you mean weight\?"),
        (lambda: functional.ties(BASE, ONES, weigth=1), r"weight: is required by ties: coefficient"),
        (lambda: functional.ties(BASE, ONES, weight=1, density=1.5), r"density: is 1.5; expected a number in \[0, 1\]"),
        (lambda: functional.ties(BASE, ONES, weight=True), "weight: is True; expected a number"),
        (lambda: functional.ties(BASE, ONES, weight=float("nan")), "weight: is nan; expected a number"),
        (lambda: functional.ties(BASE, ONES, weight=1e39), "weight: is 1e[+]39; expected a number"),
        (lambda: functional.ties(BASE, ONES, weight=["1"]), r"weight\[0\]: is '1'; expected a number"),
        (lambda: functional.ties(BASE, ONES, weight=[1, 2]), "weight: has 2 values for 1 models"),
        (lambda: functional.ties(BASE, ONES, weight=1, normalize=1), "normalize: is 1; expected true or false"),
        (lambda: functional.ties(BASE, ONES, weight=1, normalize=True, semantics="peft"), "normalize: is no parameter"),
        (
            lambda: functional.ties(BASE, ONES, weight=1, majority_sign_method="mean", semantics="peft"),
            "majority_sign_method: is 'mean'; expected one of total, frequency",
        ),
        (lambda: functional.ties(BASE, ONES, weight=1, semantics="mecha"), "'mecha' is not offered for ties"),
        (lambda: functional.ties(BASE, ONES, weight=1, seed=-1), "seed: is -1; expected a whole number"),
        (lambda: functional.slerp(BASE, [ONES, ONES], t=0.5), "models: has 2; slerp takes exactly 1 besides the base"),
        (lambda: functional.model_stock(BASE, ONES), "models: has 1; model_stock takes at least 2 besides the base"),
        (lambda: functional.merge_tensors(None, ONES, method="ties", weight=1), "base: is None; ties requires a base"),
        (lambda: functional.merge_tensors(BASE, ONES, method="linear", weight=1), "base: is given, but linear takes"),
        (lambda: functional.merge_tensors(BASE, ONES, method="tise"), r"method: 'tise' is unknown \(did you mean ties"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(InvalidInput, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: functional.linear([ONES, ONES[:2]], weight=1), r"tensors\[1\] has shape \(2,\)"),
        (lambda: functional.linear([ONES.double()], weight=1), r"has dtype torch.float64; expected float32"),
        (lambda: functional.slerp(BASE[:2], ONES, t=0), r"base has shape \(2,\)"),
        (lambda: functional.linear(torch.ones(2, 3).t(), weight=1), r"tensors\[0\] is not contiguous"),
        (
            lambda: functional.linear(ONES, weight=1, out=torch.empty(2)),
            r"tensors\[0\] has shape \(3,\), out has \(2,\)",
        ),
    ],
)
def test_tensors_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def states(generator, models=2):
    """Return a base and models with float tensors of several dtypes and one integer tensor."""

    def state():
        return {
            "layers.10.w": torch.randn(9, 5, generator=generator),
            "layers.2.w": torch.randn(9, 5, generator=generator).bfloat16(),
            "norm": torch.randn(5, generator=generator).half(),
            "empty": torch.empty(0),
            "position": torch.arange(4),
        }

    return state(), [state() for _ in range(models)]


@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_state_dicts_are_merged_tensor_by_tensor(method, generator):
    base, models = states(generator)
    copies = [{name: t.clone() for name, t in state.items()} for state in (base, *models)]
    merged = merge_state_dicts(base, models, method=method, weight=[0.5, 1.0], density=0.5, lambda_=0.9, seed=3)
    assert list(merged) == list(base)
    for name, tensor in merged.items():
        assert tensor.dtype == base[name].dtype
        if tensor.is_floating_point():
            alone = functional.merge_tensors(
                base[name], [m[name] for m in models], method=method, weight=[0.5, 1.0], density=0.5, lambda_=0.9,
                seed=3, name=name,
            )  # fmt: skip
            assert torch.equal(tensor, alone)
    assert torch.equal(merged["position"], base["position"])
    assert merged["position"].data_ptr() != base["position"].data_ptr()
    for state, copy in zip((base, *models), copies, strict=True):
        assert all(torch.equal(state[name], copy[name]) for name in copy)


def test_order_of_tensors_does_not_matter(generator):
    base, models = states(generator)
    merged = merge_state_dicts(base, models, method="dare_linear", weight=1, density=0.5)
    turned = merge_state_dicts(
        dict(reversed(base.items())), [dict(reversed(m.items())) for m in models],
        method="dare_linear", weight=1, density=0.5,
    )  # fmt: skip
    assert list(turned) == list(merged)[::-1]
    assert all(torch.equal(turned[name], merged[name]) for name in merged)


def test_out_of_state_dicts(generator):
    base, models = states(generator)
    expected = merge_state_dicts(base, models, method="task_arithmetic", weight=0.5)
    out = {name: torch.empty_like(t) for name, t in base.items()}
    merged = merge_state_dicts(base, models, method="task_arithmetic", weight=0.5, out=out)
    assert all(merged[name] is out[name] and torch.equal(out[name], expected[name]) for name in out)
    half = merge_state_dicts(None, models, method="linear", weight=1, dtype=torch.float16)
    assert {t.dtype for t in half.values()} == {torch.float16, torch.int64}


def test_state_dict_of_a_module_can_be_loaded():
    modules = [torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)) for _ in range(3)]
    base, *models = [m.state_dict() for m in modules]
    modules[0].load_state_dict(merge_state_dicts(base, models, method="model_stock"))


def test_all_problems_of_state_dicts_are_named_at_once(generator):
    base, (a, b) = states(generator)
    del a["norm"]
    a["extra"] = ONES
    a["position"] = a["position"] + 1
    b["layers.2.w"] = torch.ones(5, 9)
    b["layers.10.w"] = b["layers.10.w"].double()
    b["norm"] = torch.ones(5, dtype=torch.int32)
    b["empty"] = "text"
    with pytest.raises(InvalidInput) as caught:
        merge_state_dicts(base, [a, b], method="tie", wieght=1)
    for expected in (
        "method: 'tie' is unknown (did you mean ties?)",
        "models[0]: lacks tensors that base has: norm",
        "models[0]: has tensors that base lacks: extra",
        "models[0]['position']: has dtype torch.int64 and differs from base['position'] (only equal ones are copied)",
        "models[1]['layers.2.w']: has shape (5, 9), base['layers.2.w'] has (9, 5)",
        "models[1]['layers.10.w']: has dtype torch.float64; expected float32, bfloat16 or float16 (convert it)",
        "models[1]['norm']: has dtype torch.int32, base['norm'] has torch.float16",
        "models[1]['empty']: is a str; expected a tensor (take it out of the state dicts)",
    ):
        assert expected in str(caught.value)
    assert len(caught.value.problems) == 8


def test_problems_of_out_and_dtype(generator):
    base, models = states(generator)
    out = {name: torch.empty_like(t) for name, t in base.items()}
    with pytest.raises(InvalidInput, match="out: lacks norm"):
        merge_state_dicts(None, models, method="linear", weight=1, out={n: t for n, t in out.items() if n != "norm"})
    out |= {"norm": torch.empty(6), "position": torch.empty(4), "empty": torch.empty(0, dtype=torch.float64)}
    with pytest.raises(InvalidInput) as caught:
        merge_state_dicts(None, models, method="linear", weight=1, out=out)
    assert len(caught.value.problems) == 3
    with pytest.raises(InvalidInput, match=r"dtype: is torch.int8; expected float32"):
        merge_state_dicts(None, models, method="linear", weight=1, dtype=torch.int8)
    with pytest.raises(InvalidInput, match=r"models: has 0; linear takes at least 1"):
        merge_state_dicts(None, [], method="linear", weight=1)


def test_nothing_is_written_when_the_method_refuses(generator):
    _, models = states(generator)
    out = {name: torch.zeros_like(t) for name, t in models[0].items()}
    with pytest.raises(ValueError, match=r"layers\.10\.w: the weights .* cancel"):
        merge_state_dicts(None, models, method="linear", weight=[1, -1], out=out)
    assert all(not t.any() for t in out.values())


def test_in_place_into_the_base(generator):
    base, models = states(generator)
    expected = merge_state_dicts(base, models, method="ties", weight=0.5, density=0.4)
    addresses = {name: t.data_ptr() for name, t in base.items()}
    merge_(base, models, method="ties", weight=0.5, density=0.4)
    assert all(torch.equal(base[name], t) and base[name].data_ptr() == addresses[name] for name, t in expected.items())


def test_in_place_into_a_model_or_beside_the_base(generator):
    base, models = states(generator)
    expected = merge_state_dicts(None, models, method="linear", weight=[1, 2])
    merge_(models[0], models, method="linear", weight=[1, 2])
    assert all(torch.equal(models[0][name], t) for name, t in expected.items())
    target = {name: torch.zeros_like(t) for name, t in base.items()}
    kept = {name: t.clone() for name, t in base.items()}
    merge_(target, models, method="task_arithmetic", weight=0.5, base=base)
    expected = merge_state_dicts(base, models, method="task_arithmetic", weight=0.5)
    assert all(torch.equal(target[name], t) and torch.equal(base[name], kept[name]) for name, t in expected.items())


def tied_module(generator) -> torch.nn.Module:
    module = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7, bias=False))
    module[0].weight.data = torch.randn(7, 4, generator=generator)
    module[1].weight = module[0].weight
    return module


def test_tied_names_of_state_dicts_stay_equal(generator):
    """Random masks depend on the name, so a head that is the embedding must be merged as the embedding."""
    base, *models = (tied_module(generator).state_dict() for _ in range(3))
    options = {"method": "dare_ties", "weight": 0.5, "density": 0.5, "seed": 1}
    merged = merge_state_dicts(base, models, **options)
    assert list(merged) == list(base)
    names = [name for name in base if name != "0.weight" and base[name].data_ptr() == base["0.weight"].data_ptr()]
    assert names
    for name in names:
        assert torch.equal(merged[name], merged["0.weight"]) and merged[name] is not merged["0.weight"]
    apart = [{name: tensor.clone() for name, tensor in state.items()} for state in (base, *models)]
    alone = merge_state_dicts(apart[0], apart[1:], **options)
    assert torch.equal(alone["0.weight"], merged["0.weight"])
    assert not torch.equal(alone[names[0]], merged[names[0]])


def test_tied_weights_are_merged_once(generator):
    modules = [tied_module(generator) for _ in range(3)]
    base, *models = [m.state_dict() for m in modules]
    expected = merge_state_dicts(base, models, method="task_arithmetic", weight=0.5)
    merge_(base, models, method="task_arithmetic", weight=0.5)
    assert torch.equal(modules[0][0].weight, expected["0.weight"])
    assert modules[0][1].weight is modules[0][0].weight


def test_tensors_that_overwrite_what_is_read_later_are_refused(generator):
    base, models = ({k: v.clone() for k, v in tied_module(generator).state_dict().items()} for _ in range(2))
    tied = tied_module(generator).state_dict()
    with pytest.raises(InvalidInput, match=r"out\['1.weight'\]: shares memory with out\['0.weight'\] \(clone one"):
        merge_(tied, [models], method="task_arithmetic", weight=1, base=base)
    with pytest.raises(InvalidInput, match=r"shares memory with"):
        merge_(tied, [models], method="task_arithmetic", weight=1)
    flat = torch.randn(30, generator=generator)
    shifted = {"0.weight": flat[:28].view(7, 4), "1.weight": torch.randn(7, 4, generator=generator)}
    with pytest.raises(InvalidInput, match=r"shares memory with"):
        merge_(shifted, [{**models, "0.weight": flat[2:].view(7, 4)}], method="task_arithmetic", weight=1)
    crossed = {"0.weight": models["1.weight"], "1.weight": models["0.weight"]}
    with pytest.raises(InvalidInput, match=r"shares memory with"):
        merge_state_dicts(base, [models], method="task_arithmetic", weight=1, out=crossed)
