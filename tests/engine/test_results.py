"""Results are looked at before they replace anything: numbers that are not finite stop a merge, by name."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace

import pytest
import torch
from mirrors import compute_on_mirrors
from parameter_values import example, values_of
from tiny_merges import make_merge, merge_of_any, outputs_of
from tiny_models import make_tensors, save_model

from fastmerge.dtypes import dtype_of, float32, int64
from fastmerge.engine import RunOptions, run, verify
from fastmerge.engine.checksums import BLOCK
from fastmerge.engine.finite import _BYTES, all_finite
from fastmerge.errors import Refused
from fastmerge.methods import Group, all_methods, get_method
from fastmerge.plan import make_plan
from fastmerge.plan.types import TextFile
from fastmerge.recipe import load
from fastmerge.steps.driver import solve
from fastmerge.steps.inputs import split
from fastmerge.steps.source import Chunk, Resident

NAME = "model.layers.0.mlp.up_proj.weight"
ANY = RunOptions(allow_nonfinite=True)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EXTREMES = {dtype: (torch.finfo(dtype).max, torch.finfo(dtype).min, torch.finfo(dtype).tiny, -0.0) for dtype in DTYPES}
# Large tensors are cut into chunks, and not held whole.
SLICED = RunOptions(chunk=BLOCK, threads=2, ram=8 << 20)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf, None])
def test_every_number_is_looked_at(dtype, bad):
    most = _BYTES // dtype.itemsize
    for size in (1, 7, most - 1, most, most + 3):
        values = torch.tensor(EXTREMES[dtype], dtype=dtype).repeat(size)[:size]
        for place in {0, size // 2, size - 1}:
            changed = values.clone()
            if bad is not None:
                changed[place] = bad
            assert all_finite(memoryview(changed.view(torch.uint8).numpy()), dtype_of(dtype)) == (bad is None)
    assert all_finite(memoryview(b""), dtype_of(dtype))


def test_numbers_at_odd_places_and_other_dtypes():
    data = memoryview(bytes(3) + torch.tensor([1.0, math.inf]).numpy().tobytes())
    assert not all_finite(data[3:], float32) and all_finite(data[3:7], float32)
    assert all_finite(memoryview(b"\xff" * 16), int64)


def models(bad=None, model="model1", place=(3, 5)) -> dict[str, dict[str, torch.Tensor]]:
    """Return a base and two fine-tunes; one number of one of them is ``bad``."""
    base = make_tensors(0, hidden=16, inner=16, vocab=16, layers=1, dtype=torch.float32)
    found = {"base": base, **{f"model{k}": make_tensors(k, base=base, dtype=torch.float32) for k in (1, 2)}}
    if bad is not None:
        found[model] = {name: tensor.clone() for name, tensor in found[model].items()}
        found[model][NAME][place] = bad
    return found


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
@pytest.mark.parametrize("method", sorted(all_methods()))
def test_inputs_that_are_not_finite_stop_every_method(tmp_path, method, bad):
    merge = merge_of_any(tmp_path, method, models(bad))
    what = "1 NaN" if math.isnan(bad) else "1 infinite values"
    said = rf"{tmp_path}/model1/model.safetensors: {NAME}: holds {what}, the first at \[3, 5\].*--allow-nonfinite"
    with pytest.raises(Refused, match=said):
        run(merge.plan(), merge.out)
    assert sorted(os.listdir(tmp_path)) == ["base", "model1", "model2"]


@pytest.mark.compiled  # of which the budget is
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("method", ["linear", "ties", "breadcrumbs", "dare_ties", "della", "iso_c", "model_stock"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_large_tensors(tmp_path, monkeypatch, method, bad, mirrored):
    if mirrored:
        compute_on_mirrors(monkeypatch)
    base = make_tensors(0, hidden=256, inner=640, vocab=8, layers=1)
    tensors = {"base": base, **{f"model{k}": make_tensors(k, base=base) for k in (1, 2)}}
    tensors["model2"][NAME][600, 7] = bad
    merge = merge_of_any(tmp_path, method, tensors)
    options = RunOptions(chunk=BLOCK, threads=2) if method in ("della", "iso_c") or mirrored else SLICED
    with pytest.raises(Refused, match=rf"model2/model.safetensors: {NAME}: holds .*, the first at \[600, 7\]"):
        run(merge.plan(), merge.out, options)
    assert not merge.out.exists()


def test_the_count_and_the_first_place(tmp_path):
    tensors = models()
    tensors["base"][NAME][7, 2:5] = math.nan
    tensors["base"][NAME][6, 15] = -math.inf
    merge = merge_of_any(tmp_path, "task_arithmetic", tensors)
    with pytest.raises(Refused, match=r"base/model.safetensors: .*holds 3 NaN and 1 infinite values, the first at \[6"):
        run(merge.plan(), merge.out)


def test_copies_of_what_is_not_finite(tmp_path):
    base = models(math.nan, "base")["base"]
    save_model(tmp_path / "base", base)
    merge = make_merge(tmp_path / "other", "linear")
    merge.recipe = f"merge_method: passthrough\nmodels:\n- model: {tmp_path}/base\n"
    with pytest.raises(Refused, match=rf"base/model.safetensors: {NAME}: holds 1 NaN"):
        run(merge.plan(), merge.out)
    run(merge.plan(), merge.out, ANY)
    assert outputs_of(merge.out)[NAME].isnan().sum() == 1


@pytest.mark.parametrize("options", [RunOptions(), pytest.param(SLICED, marks=pytest.mark.compiled)])
@pytest.mark.parametrize(("dtype", "value"), [("float16", 1e5), ("bfloat16", 3e38)])
def test_overflow_is_named(tmp_path, options, dtype, value):
    tensors = make_tensors(0, hidden=256, inner=640, vocab=8, layers=1, dtype=torch.float32)
    tensors[NAME][5, 5] = value
    for name in ("a", "b"):
        save_model(tmp_path / name, tensors)
    merge = make_merge(tmp_path / "other", "linear")
    models = "".join(f"- model: {tmp_path}/{name}\n  parameters: {{weight: 0.9}}\n" for name in "ab")
    merge.recipe = f"merge_method: linear\nparameters: {{normalize: false}}\ndtype: {dtype}\nmodels:\n{models}"
    with pytest.raises(Refused, match=rf"^{NAME}: the merge gives values beyond .*, the range of {dtype}, though its"):
        run(merge.plan(), merge.out, options)
    assert sorted(os.listdir(tmp_path / "other")) == ["base", "model0", "model1", "model2"]
    report = run(merge.plan(), merge.out, ANY)
    assert outputs_of(merge.out)[NAME].isinf().sum() == 1 and report.tensors
    assert verify(merge.out).ok


def test_an_old_output_is_kept_where_the_new_one_is_refused(tmp_path):
    merge = merge_of_any(tmp_path, "linear", models())
    run(merge.plan(), merge.out)
    before = {path.name: path.read_bytes() for path in merge.out.iterdir()}
    merge_of_any(tmp_path, "linear", models(math.nan))
    with pytest.raises(Refused):
        run(merge.plan(), merge.out, RunOptions(overwrite=True))
    assert {path.name: path.read_bytes() for path in merge.out.iterdir()} == before


def test_methods_that_cannot_go_on_name_the_input_too(tmp_path):
    merge = merge_of_any(tmp_path, "slerp", models(math.nan))
    with pytest.raises(Refused, match=r"holds 1 NaN, the first at \[3, 5\] \(.*no angle to interpolate"):
        run(merge.plan(), merge.out, ANY)


@pytest.mark.parametrize("name", sorted(all_methods()))
def test_steps_that_say_so_carry_what_is_not_finite(name, generator):
    """The engine looks at the output alone where the step says that it carries NaN and infinity."""
    method = get_method(name)
    carried = 0
    for bad in (math.nan, math.inf, -math.inf) * 8:
        every = [tensors[NAME] for tensors in models().values()][: 1 + (method.inputs[1] or 2)]
        every = every[1:] if method.base == "ignored" else every
        count = len(every) - (method.base != "ignored")
        which, place = (int(torch.randint(most, (1,), generator=generator)) for most in (len(every), 256))
        every[which].view(-1)[place] = bad
        group = Group(NAME, (16, 16), count, values_of(method, example, count))
        source = Resident.of(split(every, method.base != "ignored"))
        try:
            step = solve(method, group, source)
        except ValueError:
            continue
        if step.carries:
            out = torch.zeros(16, 16)
            step(out.view(-1), Chunk.of(split([t.view(-1) for t in every], method.base != "ignored"), 0))
            assert not out.isfinite().all()
            carried += 1
    assert carried or name not in ("linear", "ties", "task_arithmetic")


@pytest.mark.parametrize(("config", "stopped"), [(True, True), (False, False), (None, False)])
@pytest.mark.parametrize("same", [True, False])
def test_a_tied_head_that_differs_stops_the_merge(tmp_path, config, stopped, same):
    """Plans leave copies out and untie heads that differ; whatever a plan says, this is looked at in the end."""
    tensors = make_tensors(0, hidden=256, vocab=768, layers=1)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + (0 if same else 1)
    save_model(tmp_path / "a", tensors)
    plan = make_plan(load(f"merge_method: passthrough\nmodels:\n- model: {tmp_path}/a\n"))
    if same:  # with a head that is written all the same
        assert "lm_head.weight" in {output.name for output in plan.outputs}
    said = json.loads(plan.files["config.json"].text)
    said.pop("tie_word_embeddings")
    text = json.dumps(said if config is None else said | {"tie_word_embeddings": config})
    plan = replace(plan, files={**plan.files, "config.json": TextFile(text)})
    if stopped and not same:
        with pytest.raises(Refused, match=r"^lm_head.weight: differs from model.embed_tokens.weight, to which"):
            run(plan, tmp_path / "out")
        assert os.listdir(tmp_path) == ["a"]
    else:
        assert run(plan, tmp_path / "out").tensors
