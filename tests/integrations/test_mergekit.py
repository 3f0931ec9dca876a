"""mergekit with our kernels: its results, its own functions for the rest, and its own functions again afterwards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmerge.errors import InvalidInput

mergekit = pytest.importorskip("mergekit", reason="mergekit is not installed (pip install mergekit==0.1.5)")
registry = pytest.importorskip("mergekit.merge_methods.registry")
if not hasattr(registry, "registered_methods"):
    pytest.skip("these tests are of mergekit 0.1.5's methods", allow_module_level=True)

from mergekit.merge_methods.base import TensorGroup  # noqa: E402

from fastmerge.integrations.mergekit import patch, unpatch  # noqa: E402

W = [0.3, 0.5, 0.7]
NO_BASE = ("linear", "karcher")
# Methods, models, parameters; with the same bits in float32, whatever mergekit's tie-breaks.
EXACT: list[tuple[str, int, dict[str, Any]]] = [
    ("task_arithmetic", 3, {"weight": W}),
    ("task_arithmetic", 2, {"weight": W[:2], "normalize": True, "lambda": 0.9}),
    ("ties", 3, {"weight": W, "density": [0.5, 0.4, 0.3]}),
    ("ties", 3, {"weight": [0.3, -0.5, 0.7], "density": 0.5, "normalize": False, "int8_mask": True}),
    ("ties", 2, {"weight": W[:2], "density": [0.0, 1.0]}),
    ("breadcrumbs", 3, {"weight": W, "density": 0.5}),
    ("breadcrumbs_ties", 3, {"weight": W, "density": 0.9, "gamma": 0.2}),
    ("dare_linear", 3, {"weight": W, "density": [0.4, 1.0, 0.3], "rescale": False}),
    ("dare_ties", 3, {"weight": W, "density": 0.4, "rescale": False, "normalize": True}),
    ("linear", 3, {"weight": W}),
    ("linear", 2, {"weight": W[:2], "normalize": False}),
    ("nearswap", 1, {"t": 1e-3}),
    ("ram", 3, {}),
    ("ramplus_tl", 3, {}),
    ("arcee_fusion", 1, {}),
]
RESCALED: list[tuple[str, int, dict[str, Any]]] = [
    ("ties", 3, {"weight": W, "density": 0.5, "rescale": True}),
    ("dare_ties", 3, {"weight": W, "density": 0.4}),
    ("dare_linear", 3, {"weight": W, "density": [0.4, 1.0, 0.3]}),
]
SUMMED: list[tuple[str, int, dict[str, Any]]] = [
    *RESCALED,
    ("slerp", 1, {"t": 0.3}),
    ("nuslerp", 2, {"weight": W[:2]}),
    ("nuslerp", 2, {"weight": W[:2], "nuslerp_flatten": False}),
    ("multislerp", 3, {"weight": W}),
    ("karcher", 3, {}),
    ("sce", 3, {"select_topk": 0.5}),
    ("model_stock", 3, {}),
    ("model_stock", 3, {"filter_wise": True}),
]
STEPWISE = ("task_arithmetic", "dare_linear", "dare_ties", "linear", "nearswap")


def ids(case: object) -> str | None:
    return case[0] if isinstance(case, tuple) else None


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    yield
    unpatch()


def models(count: int, dtype: torch.dtype, shape: tuple[int, ...] = (37, 61)) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(shape, generator=generator) * 0.05
    return base.to(dtype), [(base + torch.randn(shape, generator=generator) * 5e-3).to(dtype) for _ in range(count)]


def merged(name: str, base: Tensor, tensors: list[Tensor], parameters: dict[str, Any]) -> Tensor:
    """What mergekit, patched or not, makes of a tensor called ``x`` after its random seed was set."""
    every, index = (tensors, None) if name in NO_BASE else ([base, *tensors], 0)
    torch.manual_seed(5)
    group = TensorGroup.from_tensors(every, base_index=index, name="x")
    return registry.get(name)([group], parameters=parameters)[0]


@pytest.mark.parametrize("case", EXACT, ids=ids)
def test_float32_has_the_same_bits(case: tuple[str, int, dict[str, Any]]) -> None:
    name, count, parameters = case
    base, tensors = models(count, torch.float32)
    own = merged(name, base, tensors, parameters)
    before = [tensor.clone() for tensor in (base, *tensors)]
    with patch(random="mergekit") as patched:
        ours = merged(name, base, tensors, parameters)
    assert torch.equal(own, ours) and own.dtype == ours.dtype
    assert patched.report.served == {name: 1} and not patched.report.fell_back
    assert all(map(torch.equal, before, (base, *tensors)))


@pytest.mark.parametrize("case", SUMMED, ids=ids)
def test_float32_norms_and_angles_are_summed_exactly(case: tuple[str, int, dict[str, Any]]) -> None:
    name, count, parameters = case
    base, tensors = models(count, torch.float32)
    own = merged(name, base, tensors, parameters)
    with patch(random="mergekit") as patched:
        ours = merged(name, base, tensors, parameters)
    assert patched.report.served == {name: 1}
    # mergekit sums n = 2257 float32 squares: relative error n * 2**-24 at most, of norms and of what they scale.
    assert (own - ours).abs().max() <= 2257 * 2**-24 * own.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [case for case in (*EXACT, *RESCALED) if case[0] in STEPWISE], ids=ids)
def test_exact_rounding_has_the_same_bits(case: tuple[str, int, dict[str, Any]], dtype: torch.dtype) -> None:
    name, count, parameters = case
    base, tensors = models(count, dtype)
    own = merged(name, base, tensors, parameters)
    with patch(exact_rounding=True, random="mergekit") as patched:
        ours = merged(name, base, tensors, parameters)
    assert torch.equal(own, ours) and own.dtype == ours.dtype
    assert patched.report.served == {name: 1}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["ties", "breadcrumbs", "breadcrumbs_ties"])
def test_exact_rounding_of_trimmed_deltas_without_equal_magnitudes(name: str, dtype: torch.dtype) -> None:
    """Deltas k / 64 for k = 1 .. 120 are exact and all different, so that no tie is broken."""
    base = torch.full((120,), 2.0, dtype=dtype)
    order = torch.Generator().manual_seed(1)
    steps = [torch.randperm(120, generator=order) + 1 for _ in range(3)]
    tensors = [(base.float() + step / 64 * torch.where(step % 3 == 0, -1, 1)).to(dtype) for step in steps]
    assert all((tensor.float() - 2).abs().unique().numel() == 120 for tensor in tensors)
    for rescale in (False, True):
        parameters = {"weight": W, "density": 0.5, "rescale": rescale}
        own = merged(name, base, tensors, parameters)
        with patch(exact_rounding=True):
            ours = merged(name, base, tensors, parameters)
        assert torch.equal(own, ours)


@pytest.mark.parametrize("name", ["linear", "task_arithmetic"])
def test_bfloat16_is_closer_to_the_exact_value(name: str) -> None:
    base, tensors = models(3, torch.bfloat16)
    b, x = base.double(), [tensor.double() for tensor in tensors]
    total = sum(w * (t if name == "linear" else t - b) for w, t in zip(W, x, strict=True))
    exact = total / sum(W) if name == "linear" else b + total
    own = merged(name, base, tensors, {"weight": W})
    with patch():
        ours = merged(name, base, tensors, {"weight": W})
    assert (ours.double() - exact).abs().max() <= (own.double() - exact).abs().max()
    assert torch.equal(ours, exact.float().bfloat16()) or (ours.double() - exact).norm() < (own.double() - exact).norm()


def test_counted_masks_follow_the_seed_and_the_name_alone() -> None:
    base, tensors = models(2, torch.float32)
    parameters = {"weight": W[:2], "density": 0.5}
    with patch():
        once = merged("dare_ties", base, tensors, parameters)
        torch.rand(17)
        assert torch.equal(once, merged("dare_ties", base, tensors, parameters))


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (1, 7)])
@pytest.mark.parametrize("name", ["linear", "task_arithmetic", "ties"])
def test_small_shapes_are_as_without(name: str, shape: tuple[int, ...]) -> None:
    base, tensors = models(3, torch.float32, shape)
    own = merged(name, base, tensors, {"weight": W})
    with patch():
        ours = merged(name, base, tensors, {"weight": W})
    assert torch.equal(own, ours) and own.shape == ours.shape


def test_strided_tensors_are_read_as_they_are() -> None:
    base, tensors = models(3, torch.float32)
    own = merged("ties", base, tensors, {"weight": W, "density": 0.5})
    strided = [tensor.t().contiguous().t() for tensor in (base, *tensors)]
    assert not strided[0].is_contiguous()
    with patch():
        assert torch.equal(own, merged("ties", strided[0], strided[1:], {"weight": W, "density": 0.5}))


@pytest.mark.parametrize(
    ("dtype", "why"), [(torch.float64, "dtype torch.float64"), (torch.float32, "gradients are asked for")]
)
def test_what_is_not_covered_is_left_to_mergekit(dtype: torch.dtype, why: str) -> None:
    base, tensors = models(3, dtype)
    tensors[0].requires_grad_(dtype is torch.float32)
    own = merged("task_arithmetic", base, tensors, {"weight": W})
    with patch() as patched:
        ours = merged("task_arithmetic", base, tensors, {"weight": W})
    assert torch.equal(own, ours) and own.requires_grad == ours.requires_grad
    assert patched.report.fell_back == {("task_arithmetic", why): 1}
    assert f"task_arithmetic: 1 ({why})" in str(patched.report)


def test_what_we_refuse_is_left_to_mergekit() -> None:
    base, tensors = models(1, torch.float32)
    tensors[0][0, 0] = torch.nan
    with patch() as patched:
        assert merged("slerp", base, tensors, {"t": 0.5}).isnan().any()
    ((_, why),) = patched.report.fell_back
    assert why.startswith("refused: ")


def test_unpatching_gives_everything_back() -> None:
    def inner() -> list[object]:
        return [getattr(m, "implementation", None) or m.merge_group for m in registry.registered_methods()]

    before = inner()
    patch()
    patch(random="mergekit")
    assert inner() != before
    unpatch()
    assert inner() == before


def test_a_wrong_argument_is_named() -> None:
    with pytest.raises(InvalidInput, match="random: is 'torch'"):
        patch(random="torch")  # type: ignore[arg-type]


@pytest.mark.slow
def test_its_commands_run_so(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    for i, name in enumerate(("base", "a", "b")):
        torch.manual_seed(i)
        LlamaForCausalLM(config).save_pretrained(tmp_path / name)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        "merge_method: task_arithmetic\nbase_model: base\ndtype: float32\nmodels:\n"
        "  - {model: a, parameters: {weight: 0.5}}\n  - {model: b, parameters: {weight: 0.25}}\n"
    )
    command = ["mergekit-yaml", "recipe.yml", "--no-copy-tokenizer", "--no-write-model-card"]
    own = [sys.executable, "-c", "from mergekit.scripts.run_yaml import main; main()", *command[1:], "own"]
    ours = [sys.executable, "-m", "fastmerge.integrations.mergekit", *command, "ours"]
    for run in (own, ours):
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "fastmerge served 12 of 12 calls of mergekit" in done.stderr
    want, have = (load_file(tmp_path / name / "model.safetensors") for name in ("own", "ours"))
    assert want.keys() == have.keys() and all(torch.equal(want[key], have[key]) for key in want)
