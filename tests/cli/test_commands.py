"""verify, inspect, diff, methods, doctor and bench through the command line."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import sys
from pathlib import Path

import click
import pytest
import torch
import xxhash
from commands import call, call_json
from safetensors.torch import load_file, save_file

import fastmerge
from fastmerge import kernels
from fastmerge.checkpoint import open_checkpoint
from fastmerge.cli import _options, _planning, main, run
from fastmerge.cli._progress import progress
from fastmerge.methods import all_methods


@pytest.fixture(scope="module")
def merged(ties, tmp_path_factory):
    out = tmp_path_factory.mktemp("merged") / "out"
    assert call("merge", ties, out, "--quiet").exit_code == 0
    return out


def damaged(merged, tmp_path):
    """Return a copy of ``merged`` with one element of one tensor changed."""
    out = tmp_path / "damaged"
    shutil.copytree(merged, out)
    entry = open_checkpoint(str(out)).tensors["model.norm.weight"]
    with open(entry.path, "r+b") as file:  # the header stays as it is
        file.seek(entry.offset + 3 * entry.dtype.itemsize)
        file.write(bytes([0, 0x55]))
    return out


def test_verify_accepts_what_merge_wrote(merged):
    result = call("verify", merged, "--backend", "reference")
    assert result.exit_code == 0, result.output
    assert "every bit as recomputed" in result.stdout
    assert call_json("verify", merged, "--sample", 3)["report"]["recomputed"] == 3


@pytest.mark.parametrize("arguments", [[], ["--sample", 0]])
def test_verify_finds_a_changed_element(arguments, merged, tmp_path):
    result = call("verify", damaged(merged, tmp_path), *arguments)
    assert result.exit_code == 1
    assert "model.norm.weight" in result.stderr and result.stderr.count("differs: ") == 1


def test_verify_refuses_what_fastmerge_did_not_make(models):
    result = call("verify", models / "base")
    assert result.exit_code == 2
    assert "only outputs of fastmerge can be verified" in result.stderr


def test_inspect(merged, models):
    text = call("inspect", merged, "--tensors").stdout
    for word in ("ties", "merge_method: ties", "model.norm.weight", "bfloat16", "[256, 64]"):
        assert word in text
    assert "merged by" not in call("inspect", models / "base").stdout
    assert "layers      2 model.layers" in text and "vocabulary  256 tokens" in text
    values = call_json("inspect", merged)
    assert values["layers"] == {"model.layers": 2} and values["notes"] == []
    assert values["tensors"]["model.norm.weight"]["shape"] == [64]
    assert values["manifest"]["method"] == "ties"


def test_notes_on_what_lies_beside_the_weights(merged, tmp_path):
    shutil.copytree(merged, tmp_path / "copy")
    (tmp_path / "copy" / "pytorch_model.bin").touch()
    for command in (("inspect", tmp_path / "copy"), ("diff", merged, tmp_path / "copy")):
        said = call(*command).stderr
        assert said.startswith("note: ") and "pytorch_model.bin, which is there as well" in said
    assert len(call_json("inspect", tmp_path / "copy")["notes"]) == 1


def test_inspect_names_what_is_missing(tmp_path):
    result = call("inspect", tmp_path)
    assert result.exit_code == 2
    assert "no weights" in result.stderr


def test_diff_measures_every_tensor(merged, tmp_path):
    other = damaged(merged, tmp_path)
    found = {item["name"]: item for item in call_json("diff", merged, other)["tensors"]}
    assert len(found) == 21
    item = found.pop("model.norm.weight")
    a, b = (load_file(folder / "model.safetensors")["model.norm.weight"].double() for folder in (merged, other))
    assert item["changed"] == 1 / 64
    assert item["l2"] == pytest.approx((b - a).norm().item(), rel=1e-12)
    assert item["cosine"] == pytest.approx(torch.nn.functional.cosine_similarity(a, b, dim=0).item(), rel=1e-12)
    assert all(item["changed"] == 0 and item["l2"] == 0 for item in found.values())
    text = call("diff", merged, other, "--changed").stdout
    assert "model.norm.weight" in text and "lm_head" not in text


def test_diff_of_tensors_that_do_not_pair(tmp_path):
    for name, tensors in {
        "a": {"same": torch.arange(3), "shape": torch.zeros(2), "left": torch.zeros(1), "empty": torch.zeros(0)},
        "b": {"same": torch.arange(3), "shape": torch.zeros(3), "right": torch.zeros(1), "empty": torch.zeros(0)},
    }.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    found = {item["name"]: item for item in call_json("diff", tmp_path / "a", tmp_path / "b")["tensors"]}
    assert {name: item["status"] for name, item in found.items()} == {
        "same": "compared", "empty": "compared", "shape": "shapes differ", "left": "only in a", "right": "only in b"
    }  # fmt: skip
    assert found["same"] == {
        "name": "same", "status": "compared", "changed": 0.0, "l2": None, "cosine": None, "elements": 3
    }  # fmt: skip
    assert found["empty"]["cosine"] is None


def test_methods_lists_the_registry():
    assert [item["name"] for item in call_json("methods")] == list(all_methods())
    text = call("methods").stdout
    assert all(name in text for name in all_methods())


@pytest.mark.parametrize("name", all_methods())
def test_methods_describes_each(name):
    text = call("methods", name).stdout
    assert text.startswith(name)
    words = " ".join(text.split())
    assert all(parameter.name in words and parameter.doc in words for parameter in all_methods()[name].parameters)


def test_methods_say_whose_semantics_know_a_parameter():
    page = " ".join(call("methods", "ties").stdout.split())
    assert "only with semantics peft, sd-mecha" in page and "(default 0.2 with semantics paper, fusionbench)" in page
    found = {item["name"]: item for item in call_json("methods", "ties")[0]["parameters"]}
    assert found["density"]["defaults"]["paper"] == 0.2 and "peft" in found["majority_sign_method"]["semantics"]


def test_methods_suggests_a_name():
    result = call("methods", "tise")
    assert result.exit_code == 2
    assert "did you mean ties?" in result.stderr


def test_doctor_tells_what_is_chosen(monkeypatch):
    monkeypatch.setenv("FASTMERGE_BACKEND", "reference")
    monkeypatch.setenv("FASTMERGE_TYPO", "1")
    sections = call_json("doctor")
    assert sections["backends"] == dict.fromkeys(sorted(kernels.OPERATIONS), "reference (pinned)")
    assert sections["environment"]["FASTMERGE_BACKEND"].startswith("reference: ")
    assert "not a variable of fastmerge" in sections["environment"]["FASTMERGE_TYPO"]
    text = call("doctor").stdout
    assert "fastmerge._C" in text and torch.__version__ in text


def test_the_offered_backends_are_those_of_the_registry():
    parameters = {p.name: p for p in _options.BACKEND(lambda: None).__click_params__}
    assert set(parameters["backend"].type.choices) == {"auto", *kernels.BACKENDS}


def test_doctor_says_once_what_an_extension_lacks(monkeypatch):
    why = "no compiler was here"
    monkeypatch.setattr(kernels, "why_no_cpu_extension", lambda: why)
    monkeypatch.setattr(type(kernels.OPERATIONS["gram"]), "choose", lambda *_, **__: ("reference", f"cpu: {why}"))
    sections = call_json("doctor")
    assert set(sections["backends"].values()) == {"reference (cpu: see extension)"}
    assert sections["extension"]["fastmerge._C"] == f"missing: {why}"


def test_bench_measures_beside_a_copy():
    found = call_json("bench", "--elements", 20000)
    assert found[0]["name"] == "copy" and found[0]["of_copy"] == 1
    assert all(item["seconds"] > 0 for item in found)
    assert "of copy" in call("bench", "--elements", 20000).stdout


def test_errors_as_json(tmp_path):
    result = call("inspect", tmp_path, "--json")
    assert result.exit_code == 2
    assert "no weights" in json.loads(result.stdout)["error"]


@pytest.mark.parametrize("arguments", [["--ram", "much"], ["--files", "--explain", "norm"], ["--typo"], []])
def test_wrong_options_are_errors_as_json_too(ties, arguments):
    recipe = ties if arguments else "nowhere.yml"
    result = call("plan", recipe, *arguments, "--json")
    assert result.exit_code == 2 and not result.stderr
    assert json.loads(result.stdout)["error"]


def test_errors_of_the_system_are_one_message(models, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    monkeypatch.setattr("fastmerge.reports.inspecting.inspect", full)
    result = call("inspect", models / "one")
    assert (result.exit_code, result.stderr) == (2, "error: somewhere: No space left on device\n")


def test_a_mistake_of_fastmerge_is_not_taken_for_a_difference(monkeypatch, capsys):
    """Status 1, Python's own for a traceback, is what verify says of a difference."""
    monkeypatch.setattr("fastmerge.cli.main", lambda **_: 1 / 0)
    with pytest.raises(SystemExit) as ended:
        run()
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert "ZeroDivisionError" in told and "fastmerge doctor --report" in told


def test_a_closed_standard_input_is_an_empty_recipe(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(click.ClickException, match="standard input: the recipe is empty"):
        main.main(["check", "-"], standalone_mode=False)


def test_plan_lists_the_files_that_are_read(ties):
    rows = call_json("plan", ties, "--files")
    assert {row["name"] for row in rows} >= {"config.json", "model.safetensors"}
    assert all(row["trusted"] and ("header" in row) == (row["kind"] == "weights") for row in rows)
    assert "a JSON header that is checked, and numbers" in call("plan", ties, "--files").stdout


def test_plan_lists_files_that_are_copied_alone(models, tmp_path):
    shutil.copytree(models / "one", tmp_path / "model")
    (tmp_path / "model" / "tokenizer_config.json").write_text("{}")
    (tmp_path / "recipe.yml").write_text(f"merge_method: passthrough\nmodels: [{tmp_path / 'model'}]\n")
    rows = {row["name"]: row for row in call_json("plan", tmp_path / "recipe.yml", "--files")}
    row = rows["tokenizer_config.json"]
    assert (row["kind"], row["bytes"], row["model"]) == ("tokenizer", 2, str(tmp_path / "model"))
    assert row["xxh3"] == xxhash.xxh3_64_hexdigest(b"{}")


def test_a_process_that_is_a_command_collects_garbage_where_it_works_for_long(monkeypatch):
    states = []

    def command():
        states.append(gc.isenabled())
        with progress("working", quiet=True):
            states.append(gc.isenabled() and gc.get_freeze_count() > 0)

    monkeypatch.setattr(sys, "argv", ["fastmerge", "doctor"])
    monkeypatch.setattr(main.commands["doctor"], "callback", lambda **_: command())
    try:
        with pytest.raises(SystemExit):
            main()
    finally:
        gc.unfreeze()
        gc.enable()
    assert states == [False, True]


def test_diff_in_all(merged, models):
    base = models / "base"
    found = call_json("diff", base, merged)
    total, items = found["total"], found["tensors"]
    elements = sum(item["elements"] for item in items)
    assert total["changed"] == pytest.approx(sum(item["changed"] * item["elements"] for item in items) / elements)
    a, b = (
        torch.cat([t.double().flatten() for _, t in sorted(weights.items())])
        for weights in (
            {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}
            for folder in (base, merged)
        )
    )
    assert total["l2"] == pytest.approx((b - a).norm().item(), rel=1e-9)
    assert total["cosine"] == pytest.approx(torch.nn.functional.cosine_similarity(a, b, dim=0).item(), rel=1e-9)
    top = call_json("diff", base, merged, "--sort", "l2", "--top", 3)["tensors"]
    assert [item["name"] for item in top] == [i["name"] for i in sorted(items, key=lambda i: -i["l2"])[:3]]
    least = call_json("diff", base, merged, "--sort", "cosine")["tensors"]
    assert [i["cosine"] for i in least] == sorted(i["cosine"] for i in items)
    assert "and 20 more\n21 tensors, " in call("diff", base, merged, "--top", 1).stdout


def test_diff_says_by_its_status_whether_anything_differs(merged, models):
    assert call("diff", merged, merged, "--exit-code", "--changed").exit_code == 0
    assert call("diff", models / "base", merged, "--exit-code", "--top", 0).exit_code == 1
    assert call("diff", models / "base", merged).exit_code == 0


def test_inspect_counts_parameters(merged):
    values = call_json("inspect", merged)
    assert values["parameters"] == sum(t.numel() for t in load_file(merged / "model.safetensors").values())
    assert values["bytes"] == 2 * values["parameters"] and values["dtypes"] == {"bfloat16": values["bytes"]}
    one = call("inspect", merged / "model.safetensors")
    assert one.exit_code == 0 and f"{len(values['tensors'])}" in one.stdout


def test_doctor_says_what_a_gpu_would_use():
    sections = call_json("doctor")
    assert sections["backends on GPUs"].keys() == kernels.OPERATIONS.keys()
    assert sections["GPU kernels"]["fastmerge._cuda"].startswith(("built", "not built: "))
    assert sections["to get what is missing"]


def test_the_report_of_doctor_names_no_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTMERGE_BACKEND", "auto")
    text = call("doctor", "--report").stdout
    assert "**versions**" in text and torch.__version__ in text and "fastmerge._C" in text
    for folder in (str(tmp_path), str(tmp_path.parent), sys.prefix, str(Path(fastmerge.__file__).parent)):
        assert folder not in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("merge", "{recipe}", "{out}", "--rank-timeout", 5), "--rank-timeout is of the processes of --distributed"),
        (("multi", "{recipe}", "{out}", "--rank-timeout", 5), "--rank-timeout is of the processes of --distributed"),
        (("average", "{models}/one", "{models}/two", "{out}", "--rank-timeout", 5), "--rank-timeout is of"),
        (("verify", "{models}", "--recipe", "{recipe}", "--seed", 5), "--seed chooses the tensors of --sample"),
        (("verify", "{models}", "--seed", 5), "--seed chooses the tensors of --sample"),
        (("merge", "{recipe}", "{out}", "--seed", 1, "--random-seed", 2), "--seed 1 and --random-seed 2 are two names"),
        (("merge", "{recipe}", "{out}", "--shard-size", 9, "--out-shard-size", 8), "--out-shard-size 8 are two names"),
        (("merge", "{recipe}", "{out}", "--out-shard-size", "inf"), "'inf' is not a size like 5B"),
        (("merge", "{recipe}", "{out}", "--seed", -1), "seed: is -1, expected at least 0"),
        (("extract", "{models}/base", "{models}/one", "--out", "{out}", "-i", "(", "--energy", "nan"), "2 problems"),
    ],
)
def test_options_that_would_be_ignored_are_refused(models, ties, tmp_path, arguments, said):
    told = [str(part).format(recipe=ties, out=tmp_path / "out", models=models) for part in arguments]
    result = call(*told)
    assert result.exit_code == 2 and said in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_command_without_a_recipe_names_no_lines_of_one(models, tmp_path):
    for command in (("convert", "nowhere", tmp_path / "out", "--to", "hf"), ("average", "nowhere", tmp_path / "out")):
        assert f"\n  - {command[0]}: model nowhere: no such folder" in call(*command).stderr


def test_an_average_without_an_output_is_said_so(models):
    result = call("average", models / "one", models / "base")
    assert result.exit_code == 2 and "OUT is the last argument: name a new folder" in result.stderr


def test_a_file_that_is_looked_into_is_named(models):
    path = models / "base" / "model.safetensors"
    assert f"file        {path}\n" in call("inspect", path).stdout
    assert f"folder      {models / 'base'}\n" in call("inspect", models / "base").stdout


def test_a_plan_that_copies_and_leaves_much_out(models, tmp_path, monkeypatch):
    monkeypatch.setattr(_planning, "_MOST_DROPPED", 3)
    slices = [{"sources": [{"model": str(models / "base"), "layer_range": [0, 1]}]}]
    (tmp_path / "recipe.yml").write_text(json.dumps({"merge_method": "passthrough", "slices": slices}))
    shown = call("plan", tmp_path / "recipe.yml").stdout
    left = call_json("plan", tmp_path / "recipe.yml")["dropped"]
    assert "largest" not in shown
    assert f"and {len(left) - 3} more" in shown
