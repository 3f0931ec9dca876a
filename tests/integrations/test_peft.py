"""PEFT with our kernels: its results, what is right instead of them, and its own functions again afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

peft = pytest.importorskip("peft", reason="peft is not installed")

from peft import LoraConfig, get_peft_model  # noqa: E402
from peft.utils import merge_utils  # noqa: E402

from fastmerge.errors import InvalidInput  # noqa: E402
from fastmerge.integrations.peft import patch, unpatch  # noqa: E402

W = [0.3, -0.5, 0.7]
pytestmark = pytest.mark.filterwarnings("ignore:The density")


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    yield
    unpatch()


def tasks(dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (37, 61)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(shape, generator=generator) * 5e-3).to(dtype) for _ in W]


def call(name: str, tensors: list[Tensor], *args: Any) -> Tensor:
    torch.manual_seed(5)
    return getattr(merge_utils, name)(tensors, torch.tensor(W), *args)


CASES = [
    ("task_arithmetic",), ("magnitude_prune", 0.4), ("magnitude_prune", 1.0), ("magnitude_prune", 0.0), ("ties", 0.4),
    ("ties", 0.4, "frequency"), ("ties", 1.5),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_has_the_same_bits(case: tuple[Any, ...]) -> None:
    tensors = tasks()
    own, before = call(case[0], tensors, *case[1:]), [tensor.clone() for tensor in tensors]
    with patch() as patched:
        ours = call(case[0], tensors, *case[1:])
    assert torch.equal(own, ours) and own.dtype == ours.dtype
    assert patched.report.served == {case[0]: 1} and not patched.report.fell_back
    assert all(map(torch.equal, before, tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [("dare_linear", 0.4), ("dare_ties", 0.4), ("dare_ties", 0.25, "frequency")], ids=str)
def test_masks_are_those_of_peft(case: tuple[Any, ...], dtype: torch.dtype) -> None:
    tensors = tasks(dtype)
    own = call(case[0], tensors, *case[1:])
    with patch(random="peft") as patched:
        ours = call(case[0], tensors, *case[1:])
    assert patched.report.served == {case[0]: 1} and ours.dtype == own.dtype
    assert torch.equal(own == 0, ours == 0)
    # PEFT rounds d / density to the dtype, which we do not; three terms of at most that size are added.
    eps = torch.finfo(dtype).eps
    assert (own - ours).abs().max() <= 3 * eps * max(float(t.abs().max()) for t in tensors) / case[1]


def test_counted_masks_follow_the_generator() -> None:
    tensors = tasks()
    with patch():
        once, again = call("dare_linear", tensors, 0.5), call("dare_linear", tensors, 0.5)
        other = merge_utils.dare_linear(tensors, torch.tensor(W), 0.5)
    assert torch.equal(once, again) and not torch.equal(once, other)


def test_density_zero() -> None:
    tensors = tasks()
    with patch() as patched:
        assert call("dare_linear", tensors, 0.0).isnan().all()
    assert patched.report.fell_back == {("dare_linear", "density 0, by which PEFT divides"): 1}
    with patch(fix=True):
        assert torch.equal(call("dare_linear", tensors, 0.0), torch.zeros(37, 61))


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        (tasks(torch.float64), "weights of dtype torch.float32 with tensors of dtype torch.float64"),
        (tasks(shape=(0, 3)), "no elements"),
    ],
    ids=["float64", "empty"],
)
def test_what_is_not_covered_is_left_to_peft(tensors: list[Tensor], why: str) -> None:
    own = call("task_arithmetic", tensors)
    with patch() as patched:
        assert torch.equal(own, call("task_arithmetic", tensors))
    ((_, reason),) = patched.report.fell_back
    assert why in reason or reason.startswith("dtype")


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(11, 40), nn.Linear(40, 30)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.embed(x))


def live(ranks: tuple[int, ...] = (4, 4), embedding: bool = True, **options: Any) -> Any:
    torch.manual_seed(0)
    targets = ["linear", "embed"] if embedding else ["linear"]
    configs = [LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, **options) for rank in ranks]
    model = get_peft_model(Tiny(), configs[0], "one")
    for config, name in zip(configs[1:], ["two"], strict=False):
        model.add_adapter(name, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    return model


def delta(model: Any, adapter: str, layer: str = "linear") -> Tensor:
    return getattr(model.base_model.model, layer).get_delta_weight(adapter).detach()


def add(model: Any, name: str, combination: str, adapters: list[str], weights: list[float], **options: Any) -> None:
    torch.manual_seed(7)
    model.add_weighted_adapter(adapters, weights, name, combination_type=combination, **options)


@pytest.mark.parametrize("options", [{}, {"svd_rank": 3}, {"svd_rank": 20}], ids=str)
@pytest.mark.parametrize("combination", ["svd", "ties_svd", "magnitude_prune_svd", "dare_linear_svd", "dare_ties_svd"])
def test_decompositions_give_peft_s_product(combination: str, options: dict[str, Any]) -> None:
    # PEFT itself cannot have a rank above the 11 rows of the embedding.
    layers = ("linear", "embed") if options.get("svd_rank", 0) <= 11 else ("linear",)
    model = live((4, 6), embedding=len(layers) > 1)
    density = {} if combination == "svd" else {"density": 0.5}
    add(model, "own", combination, ["one", "two"], [0.7, -0.4], **options, **density)
    with patch(random="peft") as patched:
        add(model, "ours", combination, ["one", "two"], [0.7, -0.4], **options, **density)
    assert patched.report.served[f"add_weighted_adapter {combination}"] == len(layers)
    for layer in layers:
        own, ours = (delta(model, name, layer) for name in ("own", "ours"))
        assert (own - ours).norm() <= 1e-5 * own.norm()


@pytest.mark.parametrize("combination", ["linear", "cat", "ties", "magnitude_prune"])
def test_sums_of_factors_are_peft_s(combination: str) -> None:
    model = live((4, 4))
    density = {} if combination in ("linear", "cat") else {"density": 0.5}
    add(model, "own", combination, ["one", "two"], [0.7, -0.4], **density)
    with patch():
        add(model, "ours", combination, ["one", "two"], [0.7, -0.4], **density)
    assert torch.equal(delta(model, "own"), delta(model, "ours"))


def test_a_higher_rank_completes_a_basis() -> None:
    model = live((4, 4), embedding=False)
    with patch():
        add(model, "m", "svd", ["one", "two"], [1.0, 1.0], svd_rank=20)
    a = model.base_model.model.linear.lora_A["m"].weight
    torch.testing.assert_close(a @ a.T, torch.eye(20), atol=1e-5, rtol=0)


@pytest.mark.parametrize("combination", ["linear", "cat", "svd"])
@pytest.mark.parametrize("options", [{"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_one_adapter_of_weight_one_is_itself_when_fixed(options: dict[str, Any], combination: str) -> None:
    model, x = live((4, 4), embedding=False, **options), torch.arange(11)
    model.set_adapter("one")
    want = model(x).detach()

    def error(name: str) -> float:
        model.set_adapter(name)
        return float((model(x).detach() - want).abs().max())

    with patch():
        add(model, "kept", combination, ["one"], [1.0])
    with patch(fix=True):
        add(model, "fixed", combination, ["one"], [1.0])
    assert error("kept") > 0.1 and error("fixed") < 1e-5


def test_biases_are_added_with_their_weights() -> None:
    model, x = live((4, 6), embedding=False, lora_bias=True), torch.arange(11)
    plain = model.base_model.model.linear.base_layer(model.base_model.model.embed(x))

    def effect(name: str) -> Tensor:
        model.set_adapter(name)
        return (model(x) - plain).detach()

    want = 0.7 * effect("one") - 0.4 * effect("two")
    with patch(fix=True):
        add(model, "m", "cat", ["one", "two"], [0.7, -0.4])
    torch.testing.assert_close(effect("m"), want, atol=1e-5, rtol=0)


def test_sums_of_dora_adapters_are_refused_when_fixed() -> None:
    model = live((4, 4), embedding=False, use_dora=True)
    with patch(fix=True), pytest.raises(ValueError, match="a sum of DoRA adapters is no adapter"):
        add(model, "m", "cat", ["one", "two"], [0.5, 0.5])
    assert "m" not in model.peft_config


def test_unpatching_gives_everything_back() -> None:
    from peft.tuners.lora import model as lora

    def inner() -> list[object]:
        methods = (
            lora.LoraModel.add_weighted_adapter,
            lora.LoraModel._svd_generalized_task_arithmetic_weighted_adapter,
        )
        return [merge_utils.ties, lora.ties, *methods]

    before = inner()
    patch()
    patch(fix=True)
    assert all(old is not new for old, new in zip(before, inner(), strict=True))
    unpatch()
    assert inner() == before


def test_a_wrong_argument_is_named() -> None:
    with pytest.raises(InvalidInput, match="random: is 'torch'"):
        patch(random="torch")  # type: ignore[arg-type]
