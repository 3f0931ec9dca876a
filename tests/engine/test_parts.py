"""Tensors that are more than the share of a rank: several merge one, each its part, with the bits of one process."""

from __future__ import annotations

import itertools
import random
import shutil
import signal
import threading
from dataclasses import replace

import pytest
import torch
from launching import in_processes, in_threads
from mirrors import compute_on_mirrors
from safetensors.torch import load_file, save_file
from tiny_merges import Merge, make_merge, same_files

from fastmerge.engine import RunOptions, dealing, run
from fastmerge.engine.arena import Arena, Slot
from fastmerge.engine.checksums import BLOCK, Sums, checksum_of, digests_of
from fastmerge.engine.journal import Journal, read_journals
from fastmerge.engine.leftovers import leftovers_of
from fastmerge.engine.parts import Part, gaps, joined, part_of, recorded, span_of, whole_of
from fastmerge.engine.scheduler import Scheduler
from fastmerge.engine.totals import Totals
from fastmerge.errors import OutputError, Refused

# Budgets here are those of the compiled kernels.
pytestmark = pytest.mark.compiled

# Two matrices of eight cells and a rest each, and little beside; sixteen experts of a cell.
SIZE = {"hidden": 256, "inner": 64, "vocab": 2 * 1024 + 3, "layers": 1}
EXPERTS = {"model.layers.0.mlp.experts.up_proj": (16, 128, 512)}
SMALL = RunOptions(chunk=BLOCK, threads=1, ram=8 << 20)
# The least that holds what is surveyed, in a process alone: it reads once, too.
ROOMY = RunOptions(chunk=BLOCK, threads=2, ram=96 << 20)

RECIPES = {
    "no survey": ("linear", "{weight: 1.5}", ""),
    "counts": ("ties", "{weight: 0.5, density: 0.4}", ""),
    "counts of equal magnitudes": ("ties", "{weight: 0.5, density: 0.000002}", ""),
    "random norms": ("dare_ties", "{weight: 0.5, density: 0.4}", ""),
    "angles": ("model_stock", "{}", ""),
    "angles of rows": ("model_stock", "{}", "parameters: {filter_wise: true}\n"),
    "matrices of experts": ("iso_c", "{weight: 0.5}", ""),
    "whole rows": ("della", "{weight: 0.5, density: 0.4, epsilon: 0.2}", ""),
    "threshold of the model": ("magnitude_prune", "{weight: 0.5, density: 0.3}", "parameters: {scope: model}\n"),
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(dealing, "LEAST", BLOCK)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    generator = torch.Generator().manual_seed(torch.initial_seed())
    more = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in EXPERTS.items()}
    return make_merge(tmp_path_factory.mktemp("models"), "ties", models=2, extra=more, **SIZE)


def recipe_of(models, case="counts"):
    method, own, more = RECIPES[case]
    recipe = models.recipe.replace("ties", method, 1).replace("{weight: 0.5, density: 0.4}", own) + more
    if method == "linear":
        recipe = "".join(line for line in recipe.splitlines(True) if "base_model" not in line)
    return recipe


def share(merge, count, options=SMALL):
    found = in_threads(count, lambda one: run(merge.plan(shard_size=2_000_000), merge.out, options, ranks=one))
    assert not any(isinstance(one, BaseException) for one in found), found
    return found


def alone(merge, options=ROOMY):
    out = merge.out.parent / "alone"
    return run(merge.plan(shard_size=2_000_000), out, options), out


def parts_of(runs):
    return [output for run in runs for output in run if isinstance(output, Part)]


@pytest.mark.parametrize("case", RECIPES)
def test_bits_are_those_of_one_process(models, tmp_path, case):
    merge = Merge(recipe_of(models, case), tmp_path / "out")
    report, out = alone(merge)
    plan = merge.plan(shard_size=2_000_000)
    runs = dealing.deal_parts(plan.outputs, 3)
    assert len(parts_of(runs)) >= (0 if case == "whole rows" else 3)
    first, *_ = share(merge, 3, ROOMY)
    assert same_files(merge.out, out)
    assert first.bytes_written == report.bytes_written
    if "model" not in case:  # what is asked of the model is asked anew, to see that nobody asks for more
        assert first.bytes_read == plan.bytes_read
    assert first.tensors == report.tensors and first.resumed == 0


@pytest.mark.parametrize("case", ["counts of equal magnitudes", "random norms"])
def test_parts_that_do_not_fit_are_read_chunk_by_chunk(models, tmp_path, case):
    merge = Merge(recipe_of(models, case), tmp_path / "out")
    _, out = alone(merge)
    first, *_ = share(merge, 5, RunOptions(chunk=BLOCK, threads=1, ram=3 << 20))
    assert same_files(merge.out, out) and first.bytes_read > merge.plan().bytes_read


@pytest.mark.parametrize("vram", [16 << 20, 6 << 20])  # with regions for the parts, and without
def test_bits_of_devices_are_those_of_one_process(models, tmp_path, monkeypatch, vram):
    merge = Merge(recipe_of(models, "random norms"), tmp_path / "out")
    _, out = alone(merge)
    compute_on_mirrors(monkeypatch, beside=True)
    first, *_ = share(merge, 3, RunOptions(chunk=BLOCK, threads=2, vram=vram))
    assert same_files(merge.out, out) and first.devices == ("cpu:0",)
    assert (first.bytes_read == merge.plan().bytes_read) == (vram == 16 << 20)


def test_what_is_cut(models):
    for case in RECIPES:
        outputs = Merge(recipe_of(models, case), None).plan().outputs
        for count in (2, 3, 7, 40):
            runs = dealing.deal_parts(outputs, count)
            assert len(runs) == count
            parts = {}
            for run_ in runs:
                for output in run_:
                    parts.setdefault(whole_of(output).name, []).append(output)
            assert parts.keys() == {output.name for output in outputs}
            for output in outputs:
                own = sorted(parts[output.name], key=span_of)
                assert not list(gaps(output, own)) and sum(o.nbytes for o in own) == output.nbytes
                assert all(span_of(part)[0] % BLOCK == 0 for part in own)
            for part in parts_of(runs):
                assert part.holders == tuple(n for n, run_ in enumerate(runs) if part.of in map(whole_of, run_))
            if case == "no survey":
                costs = [sum(map(dealing._cost, run_)) for run_ in runs]
                assert max(costs) < 1.25 * sum(costs) / count or count == 40  # more ranks than cells


def test_parts_that_ranks_survey_together_come_first(models):
    outputs = Merge(recipe_of(models), None).plan().outputs
    ordered = [dealing.from_the_middle(run_) for run_ in dealing.deal_parts(outputs, 3)]
    together = [[dealing.surveyed_together(output) for output in run_] for run_ in ordered]
    assert any(map(any, together)) and together == [sorted(run_, reverse=True) for run_ in together]
    assert sorted(output.offset for output in dealing.from_the_middle(outputs)) == [o.offset for o in outputs]
    assert dealing.from_the_middle(outputs)[0] is outputs[len(outputs) // 2]


def test_tensors_of_a_share_are_left_whole(models):
    outputs = Merge(recipe_of(models), None).plan().outputs
    for count in (1, 2):
        assert dealing.deal_parts(outputs * 8, count) == dealing.deal(outputs * 8, count)


def test_parts_together_have_the_checksums_of_the_tensor(models):
    dice = random.Random(torch.initial_seed())
    output = next(o for o in Merge(recipe_of(models), None).plan().outputs if "embed" in o.name)
    data, size = dice.randbytes(output.nbytes), output.dtype.itemsize
    numel = output.nbytes // size
    cuts = [0, *sorted(dice.sample(range(BLOCK, numel, BLOCK), 3)), numel]
    sums, parts = {}, []
    for start, stop in itertools.pairwise(cuts):
        part = part_of(output, start, stop)
        cells = digests_of(memoryview(data)[start * size : stop * size], BLOCK * size).hex()
        sums[part.name], parts = Sums(cells, (cells, "00" * 8 * (len(cells) // 16))), [*parts, part]
    assert part_of(output, 0, numel) is output
    assert joined([output], sums)[output.name].output == checksum_of(memoryview(data), size)
    assert recorded([output], set(sums)) == parts
    missing = parts[1]
    del sums[missing.name]
    assert joined([output], sums) == sums
    assert list(gaps(output, recorded([output], sums))) == [span_of(missing)]


def failing(monkeypatch, fails):
    """Let a rank stop before it notes what ``fails`` says, with all that others noted before in their journals."""
    finished, flush, lock = Journal.finished, Journal.flush, threading.RLock()

    def flush_alone(self):
        with lock:
            flush(self)

    def note(self, output, sums):
        if fails(self, output):
            raise OutputError("the disk is full")
        finished(self, output, sums)
        self.flush()

    monkeypatch.setattr(Journal, "finished", note)
    monkeypatch.setattr(Journal, "flush", flush_alone)


@pytest.mark.parametrize(
    ("case", "again"), [("no survey", 1), ("no survey", 4), ("counts", 2), ("matrices of experts", 2)]
)
def test_any_number_of_ranks_goes_on(models, tmp_path, case, again):
    merge = Merge(recipe_of(models, case), tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, lambda journal, output: "-2.jsonl" in journal._path and isinstance(output, Part))
        errors = in_threads(3, lambda one: run(merge.plan(shard_size=2_000_000), merge.out, ROOMY, ranks=one))
    assert all(isinstance(error, OutputError) for error in errors), errors
    plan = merge.plan(shard_size=2_000_000)
    (left,) = leftovers_of(merge.out)
    noted = read_journals(str(left.path / "journal.jsonl"), plan)
    kept = dealing.taken_over(plan.outputs, noted)
    parts = [output for output in recorded(plan.outputs, kept) if isinstance(output, Part)]
    # Of what has to be surveyed as a whole again, parts are of no use.
    assert bool(parts) == (case != "counts") and (not parts or f"and {len(parts)} parts of others" in str(errors[0]))
    report = run(plan, merge.out, ROOMY) if again == 1 else share(merge, again, ROOMY)[0]
    assert report.resumed == len(kept) - len(parts)
    assert report.bytes_written == sum(output.nbytes for output in dealing.unfinished(plan.outputs, kept))
    assert same_files(merge.out, alone(merge)[1])


def test_a_rank_that_fails_in_a_survey_ends_those_that_wait_for_it(models, tmp_path, monkeypatch):
    adder = Totals.adder

    def fail(self, part):
        if self._ranks.number == 1:
            raise OutputError("the disk is full")
        return adder(self, part)

    monkeypatch.setattr(Totals, "adder", fail)
    merge = Merge(recipe_of(models), tmp_path / "out")
    errors = in_threads(3, lambda one: run(merge.plan(), merge.out, SMALL, ranks=one))
    assert all(isinstance(error, OutputError) and "the disk is full" in str(error) for error in errors), errors


def test_what_one_rank_refuses_in_its_part_all_do(models, tmp_path):
    merge = make_merge(tmp_path, "ties", models=1, **SIZE)
    path = tmp_path / "model0" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"][2000, 3] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    errors = in_threads(3, lambda one: run(merge.plan(), merge.out, SMALL, ranks=one))
    assert all(isinstance(error, Refused) for error in errors), errors
    assert all("lm_head.weight: holds 1 NaN, the first at [2000, 3]" in str(error) for error in errors)


class Unit:
    def __init__(self, task):
        self._task = task

    def start(self, memory):
        return True

    def finish(self):
        pass

    def stages(self):
        yield [self._task]


def test_a_rank_that_failed_waits_for_nobody(models):
    output = next(o for o in Merge(recipe_of(models), None).plan().outputs if "embed" in o.name)
    (part, *_), _ = dealing.deal_parts([output], 2)
    began, over = threading.Event(), threading.Event()

    def wait(slot, totals):
        began.set()
        totals.adder(part)(torch.zeros(4).numpy())

    def fail(slot):
        began.wait()
        raise OutputError("the disk is full")

    def work(one):
        if not one.first:  # gives signs of life, and no table
            over.wait()
            return
        totals, arena = Totals(one), Arena(1)
        units = iter([Unit(lambda slot: wait(slot, totals)), Unit(fail)])
        try:
            Scheduler(units, [Slot(arena, 0, 0), Slot(arena, 0, 0)], stop=totals.stop).run(lambda: None)
        finally:
            over.set()

    error, _ = in_threads(2, work)
    assert isinstance(error, OutputError)


def test_values_that_a_store_refuses_go_in_pieces():
    values = [random.Random(number).randbytes(9 << 20) for number in range(2)]

    def work(one):
        mine = values[one.number]
        together = one.agree_among([1, 0], "key", mine, lambda both: b"".join(reversed(both)), lambda: False)
        return together == b"".join(values), one.collect(mine), one.hear(mine) == values[0]

    assert in_threads(2, work) == [(True, values, True), (True, [], True)]


# Rank 1 kills itself when its journal has a part.
KILLED = f"""
import os, signal, sys
from fastmerge.cli import main
from fastmerge.engine import dealing, journal
from fastmerge.engine.journal import Journal
from fastmerge.engine.parts import Part
dealing.LEAST = {BLOCK}
journal.FLUSH_SECONDS = 3600.0  # flushed here alone
finished = Journal.finished

def die(self, output, sums):
    finished(self, output, sums)
    self.flush()
    if isinstance(output, Part):
        os.kill(os.getpid(), signal.SIGKILL)

if os.environ["RANK"] == "1":
    Journal.finished = die
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_rank_that_is_killed(models, tmp_path):
    merge = Merge(recipe_of(models, "no survey"), tmp_path / "out")
    (tmp_path / "r.yml").write_text(merge.recipe)
    old = Merge(merge.recipe.replace("1.5", "0.5"), merge.out)
    run(old.plan(), old.out)
    shutil.copytree(merge.out, tmp_path / "old")
    arguments = ["merge", tmp_path / "r.yml", merge.out, "--shard-size", "2MB", "--overwrite", "--threads", "1"]
    ended = in_processes(3, [*arguments, "--distributed", "--rank-timeout", "5"], ("-c", KILLED))
    assert [status for status, *_ in ended] == [2, -signal.SIGKILL, 2], ended
    for number in (0, 2):
        _, out, err = ended[number]
        errors = [line for line in err.splitlines() if line.startswith("error:")]
        assert len(errors) == 1 and "Traceback" not in err and not out, err
        assert "rank 1 of 3 has not been heard of for 5 s" in errors[0], err
    assert "parts of others" in ended[0][2] and "the same command goes on from there" in ended[0][2]
    assert same_files(merge.out, tmp_path / "old")
    (left,) = leftovers_of(merge.out)
    assert left.finished >= 1 and not left.in_use
    shutil.copytree(left.path, tmp_path / "kept")
    _, expected = alone(Merge(merge.recipe, tmp_path / "x"))
    options = replace(ROOMY, overwrite=True)
    for count in (4, 1):
        if not left.path.exists():
            shutil.rmtree(merge.out)
            shutil.copytree(tmp_path / "old", merge.out)
            shutil.copytree(tmp_path / "kept", left.path)
        report, *_ = share(merge, count, options)
        assert report.bytes_written < merge.plan().bytes_written
        assert same_files(merge.out, expected)
