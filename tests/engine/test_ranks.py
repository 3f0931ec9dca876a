"""Ranks that share a merge: the bytes of one process, one clear error where one fails, and a way to go on."""

from __future__ import annotations

import json
import random
import shutil

import pytest
import torch
from launching import in_processes, in_threads
from safetensors.torch import load_file, save_file
from tiny_merges import Merge, make_merge, same_files

from fastmerge.engine import RunOptions, run, together, verify
from fastmerge.engine.checksums import BLOCK
from fastmerge.engine.dealing import Seams, common_pages, deal
from fastmerge.engine.journal import Journal, journals_beside
from fastmerge.engine.launched import Place, own_devices
from fastmerge.engine.launched_ranks import LaunchedRanks
from fastmerge.engine.leftovers import leftovers_of
from fastmerge.errors import FastmergeError, OutputError, Refused
from fastmerge.pipelines import merge_all
from fastmerge.plan.types import Shard
from fastmerge.recipe.pipeline import load_pipeline

# Budgets here are those of the compiled kernels.
pytestmark = pytest.mark.compiled

WIDE = {"hidden": 256, "inner": 640, "vocab": 768, "layers": 2}
SMALL = RunOptions(chunk=BLOCK, threads=1, ram=8 << 20)

# What is asked of the whole model, too: one threshold, one norm.
RECIPES = {
    "linear": ("linear", "{weight: 1.5}", ""),
    "ties": ("ties", "{weight: 0.5, density: 0.4}", ""),
    "threshold of the model": ("magnitude_prune", "{weight: 0.5, density: 0.3}", "parameters: {scope: model}\n"),
    "signs of the model": ("ties", "{density: 0.3}", "semantics: paper\n"),
    "norm of the model": ("task_arithmetic", "{weight: 0.5}", "lines: {beta: 0.5, auto: true}\n"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_merge(tmp_path_factory.mktemp("models"), "ties", **WIDE)


@pytest.fixture
def merge(models, tmp_path):
    return Merge(models.recipe, tmp_path / "out")


def share(merge, count):
    return in_threads(count, lambda one: run(merge.plan(shard_size=500_000), merge.out, SMALL, ranks=one))


def alone(merge, **options):
    out = merge.out.parent / "alone"
    return run(merge.plan(shard_size=500_000), out, RunOptions(**options)), out


@pytest.mark.parametrize("case", RECIPES)
@pytest.mark.parametrize("count", [2, 3])
def test_bytes_are_those_of_one_process(case, count, tmp_path):
    method, own, more = RECIPES[case]
    merge = make_merge(tmp_path, "linear" if method == "linear" else "task_arithmetic")
    recipe = merge.recipe.replace("{weight: 0.5}", own).replace("task_arithmetic", method) + more
    merge = Merge(recipe, merge.out)
    plan = merge.plan(shard_size=100_000)
    report = run(plan, tmp_path / "alone", SMALL)
    shared = in_threads(count, lambda one: run(merge.plan(shard_size=100_000), merge.out, SMALL, ranks=one))
    assert not any(isinstance(one, BaseException) for one in shared), shared
    assert same_files(merge.out, tmp_path / "alone")
    # Nothing is read twice that one process reads once, but to see that there is no other census.
    slack = 0 if not more else plan.bytes_read // 2
    assert abs(shared[0].bytes_read - report.bytes_read) <= slack
    assert shared[0].bytes_written == report.bytes_written
    assert not list(tmp_path.glob(".out*"))


def test_command_in_two_processes(merge, tmp_path):
    (tmp_path / "r.yml").write_text(merge.recipe)
    _, out = alone(Merge(merge.recipe, tmp_path / "x"))
    arguments = ["merge", tmp_path / "r.yml", merge.out, "--shard-size", "500kB", "--distributed", "--json"]
    (first, text, err), (second, nothing, quiet) = in_processes(2, arguments)
    assert (first, second) == (0, 0), err + quiet
    assert json.loads(text)["tensors"] == 21 and nothing == "" and quiet == ""
    assert same_files(merge.out, out) and verify(str(merge.out)).ok


def test_fails_before_any_work_where_plans_differ(merge, tmp_path):
    def work(one):
        recipe = merge.recipe.replace("density: 0.4", "density: 0.5") if one.number == 1 else merge.recipe
        return run(Merge(recipe, merge.out).plan(), merge.out, SMALL, ranks=one)

    for error in in_threads(3, work):
        assert isinstance(error, FastmergeError)
        assert "rank 1 of 3 has planned another merge than rank 0: its plan is " in str(error)
    assert not list(tmp_path.glob(".out*"))


def test_what_one_rank_refuses_all_do(tmp_path):
    merge = make_merge(tmp_path, "ties")
    path = tmp_path / "model1" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    errors = share(merge, 2)
    assert all(isinstance(error, Refused) and "up_proj.weight" in str(error) for error in errors)
    assert sum("rank 1 of 2 on " in str(error) for error in errors) == 1
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("again", [1, 2, 3])
def test_any_number_of_ranks_goes_on(merge, monkeypatch, again):
    finished = Journal.finished

    def failing(self, output, sums):
        if "-2.jsonl" in self._path and self.checksums:
            raise OutputError("the disk is full")
        finished(self, output, sums)
        self.flush()

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finished", failing)
        first, *others = share(merge, 3)
    assert "the disk is full; stopped with" in str(first) and "the same command goes on from there" in str(first)
    assert all(isinstance(error, OutputError) for error in (first, *others))
    (left,) = leftovers_of(merge.out)
    assert 0 < left.finished < 21 and not left.in_use
    assert len(journals_beside(str(left.path / "journal.jsonl"))) == 2
    report = run(merge.plan(shard_size=500_000), merge.out, SMALL) if again == 1 else share(merge, again)[0]
    assert report.resumed == left.finished
    assert same_files(merge.out, alone(merge)[1])
    assert not leftovers_of(merge.out)


def test_a_journal_that_another_process_writes_stops_a_run(merge, tmp_path):
    plan = merge.plan()
    folder = tmp_path / f".out.partial-{plan.digest[:8]}"
    folder.mkdir()
    orphan = Journal(str(folder / "journal-1.jsonl"), plan, None, {})
    assert leftovers_of(merge.out)[0].in_use
    with pytest.raises(OutputError, match=r"journal-1\.jsonl: a process of an earlier run still writes"):
        run(plan, merge.out)
    orphan.close()
    run(plan, merge.out)


def test_a_rank_that_is_silent_ends_the_others(merge, monkeypatch):
    listen, leave = LaunchedRanks._listen, LaunchedRanks.__exit__
    monkeypatch.setattr(LaunchedRanks, "_listen", lambda self: self.first and listen(self))
    monkeypatch.setattr(LaunchedRanks, "__exit__", lambda self, *error: self.first and leave(self, *error))
    error, _ = in_threads(2, lambda one: one.first and run(merge.plan(), merge.out, ranks=one), timeout=2.0)
    assert isinstance(error, FastmergeError) and "rank 1 of 2 has not been heard of for 2 s" in str(error)
    assert not merge.out.exists()


def test_a_rank_that_sees_another_folder_says_so(merge, monkeypatch):
    monkeypatch.setattr(together, "_sees", lambda path, token: False)
    monkeypatch.setattr(together, "SEEN_LATE", 0.0)
    errors = share(merge, 2)
    assert all("all ranks need a file system in common" in str(error) for error in errors)


DOCUMENTS = """name: half
{recipe}---
merge_method: linear
models:
- model: half
  parameters: {{weight: 1}}
- model: {models}/model0
  parameters: {{weight: 0.5}}
"""


@pytest.fixture
def documents(models):
    return DOCUMENTS.format(recipe=models.recipe, models=models.out.parent)


@pytest.mark.parametrize("count", [2, 3])
def test_several_documents_are_shared_one_after_the_other(documents, tmp_path, count):
    pipeline = load_pipeline(documents)
    merge_all(pipeline, tmp_path / "alone", SMALL)
    shared = in_threads(count, lambda one: merge_all(pipeline, tmp_path / "out", SMALL, ranks=one))
    assert not any(isinstance(one, BaseException) for one in shared), shared
    assert [item.name for item in shared[1]] == ["half", ""]
    assert not any("another merge" in note for item in shared[0] for note in item.report.notes)
    assert sums_in(tmp_path / "out") == sums_in(tmp_path / "alone")
    for folder in ("out", "alone"):
        (tmp_path / folder / "fastmerge.json").unlink()  # it names the folder of intermediate results
    assert same_files(tmp_path / "out", tmp_path / "alone")
    assert not list(tmp_path.glob(".out*"))


def sums_in(folder):
    return json.loads((folder / "fastmerge.json").read_text())["tensors"]


def test_results_that_are_kept_are_taken_over_by_all_ranks(documents, tmp_path):
    pipeline, kept = load_pipeline(documents), tmp_path / "kept"

    def work(one):
        return merge_all(pipeline, tmp_path / "out", SMALL, ranks=one, intermediates=kept)

    first = in_threads(2, work)
    shutil.rmtree(tmp_path / "out")
    for found in in_threads(2, work):
        assert [item.report is None for item in found] == [True, False], first
    assert verify(str(kept / "half")).ok and verify(str(tmp_path / "out")).ok


def test_several_documents_go_on_after_a_rank_failed(documents, tmp_path, monkeypatch):
    pipeline, finished = load_pipeline(documents), Journal.finished

    def failing(self, output, sums):
        if "-1.jsonl" in self._path and ".steps" not in self._path:  # the second document
            raise OutputError("the disk is full")
        finished(self, output, sums)

    def work(one):
        return merge_all(pipeline, tmp_path / "out", SMALL, ranks=one)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finished", failing)
        errors = in_threads(2, work)
    assert all("the disk is full" in str(error) for error in errors), errors
    assert "intermediate results are kept in " in str(errors[0])
    assert not (tmp_path / "out").exists()
    again = in_threads(3, work)
    assert [item.report is None for item in again[0]] == [True, False]
    merge_all(pipeline, tmp_path / "alone", SMALL)
    assert sums_in(tmp_path / "out") == sums_in(tmp_path / "alone")
    assert not list(tmp_path.glob(".out*"))


def test_dealing(models):
    outputs = models.plan().outputs
    costs = {o.name: o.nbytes + sum(t.nbytes for t in o.inputs.every) for o in outputs}
    for count in (1, 2, 3, 7, 21, 40):
        runs = deal(outputs, count)
        assert len(runs) == count and [o for one in runs for o in one] == list(outputs)
        most = max(sum(costs[o.name] for o in one) for one in runs)
        assert most <= sum(costs.values()) / count + max(costs.values())
    assert deal([], 3) == [[], [], []]


def test_pages_in_common_are_written_once_and_whole(tmp_path):
    dice = random.Random(torch.initial_seed())
    merge = make_merge(tmp_path, "linear", hidden=24, inner=40)
    outputs = merge.plan().outputs
    runs = deal(outputs, 3)
    pages = common_pages(runs)
    assert pages and common_pages([outputs]) == set()
    end = max(o.offset + o.nbytes for o in outputs)
    wanted, found = bytearray(dice.randbytes(end)), bytearray(end)
    path = tmp_path / "shard"
    path.write_bytes(bytes(end))
    with Seams(str(tmp_path), [Shard("shard", b"", end)], pages) as seams:
        for output in outputs:
            start, stop = output.offset, output.offset + output.nbytes
            data = memoryview(wanted)[start:stop]
            left, right = seams.write(0, start, data)
            found[start + left : start + right] = data[left:right]
            for page in pages:  # nothing of these is left to be written otherwise
                assert start + right <= page[1] * 4096 or start + left >= (page[1] + 1) * 4096 or left == right
    through = path.read_bytes()
    first = min(o.offset for o in outputs)
    assert bytes(a | b for a, b in zip(through, found, strict=True))[first:] == wanted[first:]


def test_places_of_launchers():
    said = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}
    assert Place.of(said) == Place(1, 4, 0, 1, "host", 29500)
    assert Place.of({**said, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}).local_count == 2
    with pytest.raises(FastmergeError, match="RANK, MASTER_ADDR not set; start with torchrun"):
        Place.of({"WORLD_SIZE": "2", "MASTER_PORT": "1"})
    for wrong in ({"RANK": "4"}, {"RANK": "x"}, {"MASTER_PORT": "0"}, {"LOCAL_RANK": "1"}):
        with pytest.raises(FastmergeError, match="--distributed: "):
            Place.of({**said, **wrong})


def test_devices_are_dealt():
    assert [own_devices(4, rank, 2) for rank in range(2)] == ["cuda:0,cuda:2", "cuda:1,cuda:3"]
    assert [own_devices(2, rank, 3) for rank in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
