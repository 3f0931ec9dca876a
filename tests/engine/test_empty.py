"""Empty tensors, as ZeRO-3 leaves them in checkpoints, pass through a merge by any method."""

from __future__ import annotations

import pytest
import torch
from checkpoint_files import write_adapter, write_raw
from mirrors import compute_on_mirrors
from tiny_merges import make_merge, merge_of_any, outputs_of
from tiny_models import make_tensors

import fastmerge
from fastmerge.engine import RunOptions, run, scheduler, verify
from fastmerge.engine.arena import Arena, Slot
from fastmerge.engine.manifest import read_manifest
from fastmerge.methods import all_methods

# A name that methods know as a matrix of a layer, and one that no method knows.
PLACES = ("model.layers.0.mlp.x_proj.weight", "model.layers.1.x")
SHAPES = ((0,), (0, 5), (5, 0), (2, 0, 3))


def empty_tensors() -> dict[str, torch.Tensor]:
    return {f"{name}{i}": torch.zeros(shape) for name in PLACES for i, shape in enumerate(SHAPES)} | {
        PLACES[0]: torch.zeros(0)
    }


@pytest.mark.parametrize("method", sorted(all_methods()))
def test_empty_tensors_are_written_as_they_are(tmp_path, method):
    size = {"hidden": 16, "inner": 16, "vocab": 16, "layers": 2, "dtype": torch.float32}
    base = make_tensors(0, **size)
    models = {"base": base, **{f"model{k}": make_tensors(k, base=base, dtype=torch.float32) for k in (1, 2)}}
    merge = merge_of_any(tmp_path, method, {name: {**t, **empty_tensors()} for name, t in models.items()})
    run(merge.plan(), merge.out, RunOptions(ram=64 << 20, threads=2))
    found = outputs_of(merge.out)
    for name, tensor in empty_tensors().items():
        assert found[name].shape == tensor.shape
    assert verify(merge.out, ram=64 << 20).ok


def test_an_empty_tensor_begins_where_another_one_does(tmp_path):
    """It lies before that one in one file and behind it in the other, and takes nothing from it."""
    values = torch.randn(2, 8)
    for row, name, begin in ((0, "model0", 32), (1, "model1", 0)):
        entries = {"none": {"shape": [0, 4], "offsets": [begin, begin]}, "w": {"shape": [8], "offsets": [0, 32]}}
        header = {n: {"dtype": "F32", "shape": e["shape"], "data_offsets": e["offsets"]} for n, e in entries.items()}
        (tmp_path / name).mkdir()
        write_raw(tmp_path / name / "model.safetensors", header, values[row].numpy().tobytes())
    models = [{"model": str(tmp_path / name), "parameters": {"weight": 1}} for name in ("model0", "model1")]
    recipe = {"merge_method": "linear", "models": models, "parameters": {"normalize": False}}
    fastmerge.merge(recipe, tmp_path / "out")
    assert torch.equal(outputs_of(tmp_path / "out")["w"], values[0] + values[1])
    sources = read_manifest(tmp_path / "out")["sources"]
    assert len({*sources["none"]}) == 1 and not {*sources["none"]} & {*sources["w"]}


@pytest.mark.parametrize("mirrored", [False, True])
def test_an_adapter_on_an_empty_tensor_changes_nothing(tmp_path, monkeypatch, mirrored):
    if mirrored:
        compute_on_mirrors(monkeypatch)
    name = "model.layers.0.mlp.x_proj"
    merge = make_merge(tmp_path, "task_arithmetic", extra={f"{name}.weight": torch.zeros(0, 5, dtype=torch.bfloat16)})
    write_adapter(tmp_path / "adapter", {name: (0, 5)}, rank=2)
    merge.recipe = merge.recipe.replace(f"{tmp_path}/model1", f"{tmp_path}/model1+{tmp_path}/adapter")
    run(merge.plan(), merge.out)
    assert outputs_of(merge.out)[f"{name}.weight"].shape == (0, 5)


@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_stage_without_tasks_is_passed_over(where):
    done = []

    class Unit:
        def start(self, memory):
            return True

        def stages(self):
            for i in range(3):
                yield [] if i == where else [lambda slot, i=i: done.append(i)]

        def finish(self):
            done.append("finished")

    scheduler.Scheduler(iter([Unit()]), [Slot(Arena(1), 0, 0)]).run(lambda: None)
    assert done == [i for i in range(3) if i != where] + ["finished"]
