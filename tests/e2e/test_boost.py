"""Recipes with blocks, end to end: a Llama-shaped family, within the memory budget, verified, with notes."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from commands import call, call_json
from deltas import boost_oracle, relative_error
from tiny_merges import make_merge, outputs_of, same_files
from tiny_models import make_tensors, save_model

import fastmerge
from fastmerge.engine import RunOptions, run
from fastmerge.errors import BudgetError

SIZE = {"hidden": 64, "inner": 96, "vocab": 128, "layers": 3}
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def family(tmp_path):
    """Return a folder with a base and three fine-tunes, and the start of their recipe."""
    merge = make_merge(tmp_path, "task_arithmetic", dtype=torch.float32, **SIZE)
    return tmp_path, merge.recipe


def deltas(count=3):
    """Return the sum of half of every delta, in float64."""
    base = make_tensors(0, dtype=torch.float32, **SIZE)
    tuned = [make_tensors(k + 1, base=base, dtype=torch.float32) for k in range(count)]
    return base, {name: sum(0.5 * (t[name].double() - base[name].double()) for t in tuned) for name in base}


def test_boost_and_lines(family):
    folder, recipe = family
    recipe += "boost: {beta: [{filter: mlp, value: 1}, {value: 0.3}], splitting: heads}\nlines: {alpha: 0.5, beta: 1}\n"
    report = fastmerge.merge(recipe, folder / "out", ram="64MiB")
    assert report.notes == ()
    merged = outputs_of(folder / "out")
    base, total = deltas()
    for name, delta in total.items():
        parts = name.split(".")
        scale = 0.5 + (int(parts[2]) / 2 if "layers" in parts else 0)
        heads = {"q_proj": (4, 0), "k_proj": (2, 0), "v_proj": (2, 0), "o_proj": (4, 1)}.get(parts[-2])
        if heads:
            delta = torch.cat([boost_oracle(piece, 0.3)[0] for piece in delta.chunk(*heads)], dim=heads[1])
        assert relative_error(merged[name].double() - base[name].double(), scale * delta) < 1e-4, name
    manifest = json.loads((folder / "out" / "fastmerge.json").read_text())
    assert manifest["method"] == "task_arithmetic+lines+boost"
    assert fastmerge.verify(folder / "out").ok
    assert "`task_arithmetic+lines+boost`" in (folder / "out" / "README.md").read_text()
    path = folder / "recipe.yml"
    path.write_text(recipe)
    assert call_json("plan", path)["method"] == "task_arithmetic+lines+boost"


@pytest.mark.parametrize("method", ["consensus", "iso_cts", "knots"])
def test_budget_changes_no_byte(tmp_path, method):
    merge = make_merge(tmp_path, "iso_c", hidden=128, inner=192, vocab=256, layers=1)
    plan = fastmerge.check(merge.recipe.replace("merge_method: iso_c", f"merge_method: {method}") + "boost: {}\n")
    run(plan, tmp_path / "roomy")
    with pytest.raises(BudgetError, match=rf"at least \d+ .*{method}\+boost needs \d+ for model\.layers\.0") as caught:
        run(plan, tmp_path / "never", RunOptions(ram=1, threads=1))
    least = int(str(caught.value).split("at least ")[1].split()[0])
    run(plan, merge.out, RunOptions(ram=least, threads=1))
    assert same_files(merge.out, tmp_path / "roomy")
    assert fastmerge.verify(merge.out).ok


def test_noise_is_reported_once(tmp_path):
    base = make_tensors(0, **SIZE)
    save_model(tmp_path / "base", base)
    for k in range(2):
        save_model(tmp_path / f"model{k}", make_tensors(k + 1, base=base, noise=2e-5))
    path = tmp_path / "recipe.yml"
    models = [{"model": f"{tmp_path}/model{k}", "parameters": {"weight": 0.5}} for k in range(2)]
    path.write_text(
        json.dumps({"merge_method": "ties", "base_model": f"{tmp_path}/base", "models": models, "boost": {}})
    )
    result = call("merge", path, tmp_path / "out")
    assert result.stderr.count("most of the singular values that were raised are rounding noise of the inputs: 21") == 1
    assert call("merge", path, tmp_path / "quiet", "--quiet").stderr == ""


def test_blocks_of_slices(family):
    folder, recipe = family
    recipe = yaml.safe_load(recipe)
    slices = []
    for layers, beta in (([0, 1], 1), ([1, 3], 0.3)):
        sources = [{"model": f"{folder}/base"}, *recipe["models"]]
        slices.append({"boost": {"beta": beta}, "sources": [source | {"layer_range": layers} for source in sources]})
    recipe = {"merge_method": "task_arithmetic", "base_model": f"{folder}/base", "slices": slices}
    with pytest.raises(fastmerge.InvalidInput, match="the recipe has no boost: that this could change for a slice"):
        fastmerge.check(recipe)
    plan = fastmerge.check(recipe | {"boost": {}, "lines": {"alpha": 1, "beta": 1}})
    told = {output.name: output.group for output in plan.outputs}
    layers = [told[f"model.layers.{i}.self_attn.q_proj.weight"] for i in range(3)]
    assert [group["boost.beta"] for group in layers] == [1.0, 0.3, 0.3]
    # The depth is that in the output, not in the slice.
    assert [(group.layout.layer, group.layout.layers) for group in layers] == [(0, 3), (1, 3), (2, 3)]
    assert layers[0].layout.heads == 4 and layers[0].layout.kv_heads == 2
    assert told["lm_head.weight"].layout.layer is None


def test_heads_of_the_config_are_part_of_the_digest(family):
    folder, recipe = family
    recipe += "boost: {splitting: heads}\n"
    before = fastmerge.check(recipe)
    config = json.loads((folder / "base" / "config.json").read_text())

    def set_heads(heads, shared):
        for path in folder.glob("*/config.json"):
            path.write_text(json.dumps(config | {"num_attention_heads": heads, "num_key_value_heads": shared}))

    set_heads(8, 4)
    assert fastmerge.check(recipe).digest != before.digest
    set_heads(7, 4)
    with pytest.raises(fastmerge.InvalidInput, match="rows or columns are not divided by 7 heads"):
        fastmerge.check(recipe)
