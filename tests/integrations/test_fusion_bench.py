"""FusionBench with our kernels: its results, and an algorithm of its own that runs any method."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore")
pytest.importorskip("fusion_bench", reason="fusion_bench is not installed (pip install fusion-bench)")

from fusion_bench import BaseModelPool  # noqa: E402
from fusion_bench.method.dare.simple_average import DareSimpleAverage  # noqa: E402
from fusion_bench.method.dare.task_arithmetic import DareTaskArithmetic  # noqa: E402
from fusion_bench.method.isotropic_merging.iso import (  # noqa: E402
    IsotropicMergingInCommonAndTaskSubspace,
    IsotropicMergingInCommonSubspace,
)
from fusion_bench.method.model_stock.model_stock import ModelStock  # noqa: E402
from fusion_bench.method.simple_average import SimpleAverageAlgorithm  # noqa: E402
from fusion_bench.method.slerp.slerp import SlerpMergeAlgorithm  # noqa: E402
from fusion_bench.method.task_arithmetic.task_arithmetic import TaskArithmeticAlgorithm  # noqa: E402
from fusion_bench.method.task_singular_vector.TSVM import TaskSingularVectorMerging  # noqa: E402
from fusion_bench.method.ties_merging.ties_merging import TiesMergingAlgorithm  # noqa: E402
from fusion_bench.method.weighted_average.weighted_average import WeightedAverageAlgorithm  # noqa: E402

from fastmerge import merge_state_dicts  # noqa: E402
from fastmerge.integrations.fusion_bench import Fastmerge, patch, unpatch  # noqa: E402


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    yield
    unpatch()


def net(seed: int) -> nn.Module:
    """The pretrained model (0), or a fine-tune of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(23, 32), nn.Linear(32, 48), nn.LayerNorm(48), nn.Linear(48, 24, bias=False))
    if seed:
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.01)
    return model


def pool(count: int, base: bool = True) -> Any:
    models = {f"m{i}": net(i) for i in range(1, count + 1)}
    return BaseModelPool({"_pretrained_": net(0)} | models if base else models)


def ties(merge_func: str, **options: Any) -> Any:
    return TiesMergingAlgorithm(
        **{"scaling_factor": 0.3, "threshold": 20, "remove_keys": [], "merge_func": merge_func} | options
    )


SAME = [
    (WeightedAverageAlgorithm, {"normalize": True, "weights": [0.2, 0.3, 0.9], "verbose": False}, 3),
    (WeightedAverageAlgorithm, {"normalize": False, "weights": [0.2, 0.3, 0.9], "verbose": False}, 3),
    (TaskArithmeticAlgorithm, {"scaling_factor": 0.3}, 3),
    (ties, {"merge_func": "sum"}, 3),
    (ties, {"merge_func": "mean", "threshold": 0.2}, 3),
    (ties, {"merge_func": "max"}, 3),
]
NEAR = [
    (DareTaskArithmetic, {"scaling_factor": 0.3, "sparsity_ratio": 0.0, "only_on_linear_weights": False}, 3),
    (SimpleAverageAlgorithm, {}, 3),
    (SlerpMergeAlgorithm, {"t": 0.3}, 1),
    (ModelStock, {}, 2),
    (IsotropicMergingInCommonSubspace, {"scaling_factor": 1.3}, 3),
    (IsotropicMergingInCommonAndTaskSubspace, {"scaling_factor": 1.3, "common_space_fraction": 0.8}, 3),
    (TaskSingularVectorMerging, {"alpha": 0.7}, 3),
    (DareSimpleAverage, {"sparsity_ratio": 0.0, "only_on_linear_weights": False}, 3),
]


@pytest.mark.parametrize(
    ("algorithm", "options", "count", "same"), [(*c, True) for c in SAME] + [(*c, False) for c in NEAR], ids=str
)
def test_results_are_those_of_fusion_bench(algorithm: Any, options: dict[str, Any], count: int, same: bool) -> None:
    own = algorithm(**options).run(pool(count)).state_dict()
    with patch() as patched:
        ours = algorithm(**options).run(pool(count)).state_dict()
    assert patched.report.served.total() >= 1 and not patched.report.fell_back
    assert own.keys() == ours.keys()
    for name in own:
        if same:
            assert torch.equal(own[name], ours[name])
        else:
            # Norms and decompositions of FusionBench are float32's, of at most 48 x 32 elements.
            assert (own[name] - ours[name]).abs().max() <= 16 * 2**-24 * max(1.0, float(own[name].abs().max()))


def test_dropped_deltas_keep_their_mean_and_follow_the_seed() -> None:
    algorithm = DareTaskArithmetic(scaling_factor=1.0, sparsity_ratio=0.5, only_on_linear_weights=False)
    with patch():
        torch.manual_seed(3)
        one = algorithm.run(pool(1)).state_dict()
        torch.manual_seed(3)
        again = algorithm.run(pool(1)).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    base, tuned = net(0).state_dict()["1.weight"], net(1).state_dict()["1.weight"]
    kept = one["1.weight"] != base
    torch.testing.assert_close((one["1.weight"] - base)[kept], 2 * (tuned - base)[kept], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "count", "why"),
    [
        (lambda: ties("sum", remove_keys=["0.weight"]), 2, "keys that are left out"),
        (lambda: ModelStock(), 3, "more than two models, of which it averages the angles"),
        (lambda: SlerpMergeAlgorithm(t=0.3, DOT_THRESHOLD=0.9), 1, "another threshold"),
        (lambda: TaskSingularVectorMerging(exclude_keys=["0.weight"]), 2, "keys that are left out"),
    ],
    ids=["ties", "model_stock", "slerp", "tsvm"],
)
def test_what_is_not_covered_is_left_to_fusion_bench(algorithm: Any, count: int, why: str) -> None:
    with patch() as patched:
        try:
            algorithm().run(pool(count))
        except RuntimeError as error:  # TIES without keys cannot be loaded, by FusionBench either
            assert "Missing key" in str(error)
    assert [reason for _, reason in patched.report.fell_back] == [why]


@pytest.mark.parametrize(
    ("method", "parameters", "base"),
    [("della", {"weight": 0.5, "density": 0.6}, True), ("linear", {"weight": [1.0, 3.0]}, False),
     ("task_arithmetic", {"weight": 1.0, "lambda": 0.5}, True)],
)  # fmt: skip
def test_any_method_is_an_algorithm(method: str, parameters: dict[str, Any], base: bool) -> None:
    ours = Fastmerge(method, parameters, seed=7).run(pool(2, base)).state_dict()
    named = {"lambda_" if name == "lambda" else name: value for name, value in parameters.items()}
    want = merge_state_dicts(net(0) if base else None, [net(1), net(2)], method=method, seed=7, **named)
    assert all(torch.equal(want[name], ours[name]) for name in want)


def test_what_is_wrong_with_a_method_is_said() -> None:
    with pytest.raises(ValueError, match="densitiy"):
        Fastmerge("ties", {"weight": 1.0, "densitiy": 0.5}).run(pool(2))


@pytest.mark.slow
def test_its_command_runs_any_method(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "import torch\n\n\ndef net(seed):\n    torch.manual_seed(seed)\n    return torch.nn.Linear(4, 3)\n"
    )
    (tmp_path / "conf" / "modelpool").mkdir(parents=True)
    models = "".join(f"  {name}: {{_target_: nets.net, seed: {seed}}}\n" for name, seed in
                     (("_pretrained_", 0), ("a", 1), ("b", 2)))  # fmt: skip
    (tmp_path / "conf" / "modelpool" / "nets.yaml").write_text(
        f"_target_: fusion_bench.modelpool.BaseModelPool\n_recursive_: false\nmodels:\n{models}"
    )
    searched = f"hydra.searchpath=[file://{tmp_path}/conf,pkg://fastmerge.integrations.fusion_bench.config]"
    done = subprocess.run(
        [sys.executable, "-m", "fastmerge.integrations.fusion_bench", "fusion_bench", searched, "modelpool=nets",
         "method=fastmerge", "method.method=task_arithmetic", "+method.parameters.weight=0.5",
         "merged_model_save_path=null"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
