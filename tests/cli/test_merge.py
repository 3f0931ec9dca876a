"""merge, plan and check through the command line."""

from __future__ import annotations

import dataclasses
import json
import re
import sys

import pytest
import torch
from commands import call, call_json, write_recipe
from safetensors.torch import load_file

import fastmerge
from fastmerge import pipelines
from fastmerge.cli import _mergekit, _progress
from fastmerge.devices.names import DEFAULT
from fastmerge.engine import machine
from fastmerge.engine.files import InputFiles
from fastmerge.errors import OutputError


def weights(folder) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def test_merge_equals_the_merge_of_state_dicts(models, ties, tmp_path):
    result = call("merge", ties, tmp_path / "out", "--ram", "512MiB", "--threads", 2)
    assert result.exit_code == 0, result.output
    base, *tuned = (weights(models / name) for name in ("base", "one", "two", "three"))
    expected = fastmerge.merge_state_dicts(base, tuned, method="ties", weight=1.0, density=0.5)
    merged = weights(tmp_path / "out")
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(merged[name], tensor), name
    first = result.stdout.splitlines()[0]
    assert re.fullmatch(rf"merged 21 tensors into {tmp_path}/out: \S+ \wB written in [\d.]+ s, .*/s", first)
    for word in ("read", "written", "time", "peak memory"):
        assert f"\n{word} " in result.stdout


def test_python_merge_writes_the_same_files(models, ties, tmp_path):
    report = fastmerge.merge(ties, tmp_path / "a", ram="512MiB", shard_size="100kB", threads=1)
    assert call("merge", ties, tmp_path / "b", "--shard-size", "100kB", "--quiet").output == ""
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len([name for name in names if name.endswith(".safetensors")]) > 1
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert report.bytes_read == sum(p.stat().st_size for p in models.glob("*/*.safetensors")) - header_bytes(models)


def header_bytes(models) -> int:
    return sum(8 + int.from_bytes(p.read_bytes()[:8], "little") for p in models.glob("*/*.safetensors"))


def test_report_as_json(ties, tmp_path):
    report = call_json("merge", ties, tmp_path / "out")
    assert report["tensors"] == 21 and report["resumed"] == 0
    assert report["distance"] == pytest.approx(report["seconds"] / report["bound_seconds"])
    assert report["bounded_by"] in ("read", "compute", "write")


def test_a_long_merge_says_what_of_the_machine_bounds_it(ties, tmp_path, monkeypatch):
    assert "\nbound" not in call("merge", ties, tmp_path / "short").stdout
    assert call_json("merge", ties, tmp_path / "json")["machine_bound"] is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys.modules["fastmerge.cli.merge"], "LONG", 0.0)
    rates = {"_copy_rate": 2e6, "_read_rate": 1e5, "_write_rate": 1e9}
    for name, rate in rates.items():
        monkeypatch.setattr(machine, name, lambda *_, rate=rate: rate)
    for cold, what, rate in ((True, "reading the inputs from the disk", 1e5), (False, "copying input and output", 2e6)):
        monkeypatch.setattr(InputFiles, "cached", lambda self, path, cold=cold: not cold)
        found = call("merge", ties, tmp_path / "out", "--overwrite").stdout
        assert re.search(
            rf"\nbound +{what}.* takes [\d.]+ s at the .*/s of this machine; the merge took [\d.]+ times", found
        )
        bound = call_json("merge", ties, tmp_path / "out", "--overwrite")["machine_bound"]
        assert bound["rate"] == rate and bound["seconds"] == pytest.approx(bound["nbytes"] / rate)
    assert (tmp_path / "cache/fastmerge/machine.json").exists()


def test_dry_run_and_plan_agree_and_write_nothing(ties, tmp_path):
    ram = ("--ram", "16GiB")  # more than the operations take without compiled kernels
    planned, dry = call_json("plan", ties, *ram), call_json("merge", ties, tmp_path / "out", "--dry-run", *ram)
    measured = {"read_rate", "seconds"}
    assert {k: v for k, v in planned.items() if k not in measured} == {
        k: v for k, v in dry.items() if k not in measured
    }
    assert planned["tensors"] == 21 and 0 < planned["memory"] < planned["budget"] == 2**34 and planned["seconds"] > 0
    assert list(tmp_path.iterdir()) == []
    assert "reads" in call("plan", ties).stdout


def test_existing_output_is_refused_and_overwritten_when_asked(ties, tmp_path):
    out = tmp_path / "out"
    assert call("merge", ties, out, "--quiet").exit_code == 0
    refused = call("merge", ties, out)
    assert refused.exit_code == 2
    assert f"error: {out} exists and is complete, made by this recipe; choose another" in refused.stderr
    assert refused.stderr.endswith("or replace it with --overwrite\n")
    assert call("merge", ties, out, "--overwrite").exit_code == 0


def test_check_reports_every_problem(models, tmp_path):
    recipe = write_recipe(tmp_path / "r.yml", models, merge_metod="x", parameters={"lamda": 1, "normalize": "perhaps"})
    result = call("check", recipe)
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert lines[0] == "error: 3 problems"
    assert len([line for line in lines if line.startswith("  - ")]) == 3
    for word in ("merge_metod", "lamda", "lambda", "normalize"):
        assert word in result.stderr
    problems = json.loads(call("check", recipe, "--json").stdout)["problems"]
    assert len(problems) == 3 and all(problem["where"] and problem["what"] for problem in problems)


def test_check_says_when_nothing_is_wrong(ties):
    result = call("check", ties)
    assert result.exit_code == 0
    assert result.stdout == f"{ties}: nothing is wrong; 21 tensors of 4 models\n"
    assert call_json("check", ties)["ok"] is True


def test_check_counts_what_is_to_note(models, tmp_path):
    filters = {"parameters": {"lambda": [{"filter": "mpl", "value": 2}, {"value": 1}]}}
    recipe = write_recipe(tmp_path / "r.yml", models, **filters)
    result = call("check", recipe)
    assert result.stdout == f"{recipe}: no problem, 1 to note; 21 tensors of 4 models\n"
    said = "the filter 'mpl' matches no tensor"
    assert result.stderr.startswith("note: ") and said in result.stderr
    # Notes are there beside problems, too.
    write_recipe(recipe, models, **filters, chat_template="nobody")
    result = call("check", recipe)
    assert result.exit_code == 2 and "error: 1 problem" in result.stderr and said in result.stderr
    assert said in json.loads(call("check", recipe, "--json").stdout)["notes"][0]


def test_seed_replaces_the_seed_of_the_recipe(models, tmp_path):
    recipe = write_recipe(tmp_path / "r.yml", models, merge_method="dare_ties", seed=1)
    for name, arguments in {"a": [], "b": ["--seed", 1], "c": ["--random-seed", 2]}.items():
        assert call("merge", recipe, tmp_path / name, "--quiet", *arguments).exit_code == 0
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_mergekit_flags_are_accepted(ties, tmp_path):
    flags = ["--cuda", "--lazy-unpickle", "--allow-crimes", "--copy-tokenizer", "--low-cpu-memory", "--gpu-rich", "-v"]
    flags += ["--trust-remote-code", "--write-model-card", "--no-async-write", "--read-to-gpu"]
    result = call("merge", ties, tmp_path / "out", *flags, "--out-shard-size", "0.0001B", "--num-threads", 1)
    assert result.exit_code == 0, result.output
    assert "note: --read-to-gpu means nothing here: " in result.stderr
    assert "--allow-crimes" not in result.stderr and "--cuda" not in result.stderr
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1


@pytest.mark.parametrize(
    ("flags", "device"),
    [
        ([], DEFAULT),
        (["--cuda"], "auto"),
        (["--no-cuda"], "cpu"),
        (["--gpu-rich"], "auto"),
        (["--multi-gpu"], "auto"),
        (["--device", "cuda:1,cuda:0"], "cuda:1,cuda:0"),
        (["--device", "cpu", "--cuda"], "cpu"),
    ],
)
def test_devices_of_both_tools(flags, device, ties, tmp_path, monkeypatch):
    options = []

    def run(plan, out, settings, update, ranks):
        options.append(settings)
        raise OutputError("stop")

    monkeypatch.setattr(pipelines, "run", run)
    assert call("merge", ties, tmp_path / "out", "--vram", "20GiB", *flags).exit_code == 2
    assert [(item.device, item.vram) for item in options] == [(device, 20 * 2**30)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_report_says_where_the_merge_ran_and_why(ties, tmp_path):
    result = call("merge", ties, tmp_path / "out", "--device", "auto")
    assert re.search(r"\ndevice +cpu \(no GPU is used: .+\)\n", result.stdout)
    refused = call("merge", ties, tmp_path / "other", "--device", "cuda")
    assert refused.exit_code == 2
    assert re.fullmatch(r"error: --device cuda: .+; take --device cpu or auto\n", refused.stderr)
    assert call_json("doctor")["devices"]["with --device auto"].startswith("cpu: no GPU is used: ")


@pytest.mark.parametrize(("text", "nbytes"), [("5B", 5 * 10**9), ("500M", 5 * 10**8), ("2k", 2000), ("7", 7)])
def test_sizes_of_mergekit(text, nbytes):
    assert _mergekit.ShardSize().convert(text, None, None) == nbytes


@pytest.mark.parametrize(
    "arguments",
    [
        ["--ram", "lots"],
        ["--threads", 0],
        ["--backend", "gpu"],
        ["--device", "gpu"],
        ["--vram", "0"],
        ["--out-shard-size", "B"],
    ],
)
def test_bad_options_are_usage_errors(arguments, ties, tmp_path):
    result = call("merge", ties, tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr


def test_a_budget_that_is_too_small_says_what_is_needed(ties, tmp_path):
    result = call("merge", ties, tmp_path / "out", "--ram", "1kB")
    assert result.exit_code == 2
    assert "memory budget of 1000 bytes is too small: this merge needs at least" in result.stderr


def test_a_backend_that_cannot_run_is_one_message(ties, tmp_path):
    result = call("merge", ties, tmp_path / "out", "--backend", "cuda")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and "'cuda' was asked for but cannot run" in result.stderr


@pytest.mark.parametrize(("seconds", "said"), [(4.9, False), (10.0, True)])
def test_the_bound_is_told_of_long_runs_only(seconds, said, ties, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = pipelines.run
    monkeypatch.setattr(pipelines, "run", lambda *given: dataclasses.replace(run(*given), seconds=seconds))
    text = call("merge", ties, tmp_path / "out").stdout
    assert ("\nbound " in text and " of this machine; the merge took " in text and " times that" in text) == said


def test_phases_are_told_on_a_terminal_only(ties, tmp_path, monkeypatch, capsys):
    _progress.phase("planning", quiet=False)
    monkeypatch.setattr(_progress.sys.stderr, "isatty", lambda: True, raising=False)
    _progress.phase("planning", quiet=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(_progress.sys.stderr, "isatty", lambda: True, raising=False)
    _progress.phase("planning", quiet=False)
    assert capsys.readouterr().err == "planning ...\n"
