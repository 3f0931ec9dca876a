"""Methods that need whole tensors, through the engine: the bits, the budget, and what is refused."""

from __future__ import annotations

import pytest
import torch
from checkpoint_files import write_adapter
from tiny_merges import assert_same_tensors, expected, make_merge, outputs_of, same_files

from fastmerge.engine import RunOptions, run, verify
from fastmerge.engine.checksums import BLOCK
from fastmerge.errors import BudgetError, FastmergeError

METHODS = ["della", "iso_c", "iso_cts", "knots", "task_arithmetic_sb", "ties_sb", "tsvm"]
# Matrices of several chunks of one cell.
WIDE = {"hidden": 256, "inner": 384, "vocab": 512, "layers": 1}


@pytest.fixture(autouse=True)
def one_thread():
    """Let torch compute on one thread, as the engine does: a decomposition's last bits depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("method", METHODS)
def test_bits_are_those_of_a_merge_in_memory(tmp_path, method):
    merge = make_merge(tmp_path, method, **WIDE)
    plan = merge.plan()
    report = run(plan, merge.out, RunOptions(chunk=BLOCK))
    assert_same_tensors(outputs_of(merge.out), expected(plan))
    assert report.bytes_read == plan.bytes_read
    assert verify(merge.out).ok


@pytest.mark.parametrize("method", ["della", "ties_sb"])
def test_budget_and_threads_change_no_byte(tmp_path, method):
    merge = make_merge(tmp_path, method, **WIDE)
    plan = merge.plan()
    run(plan, tmp_path / "roomy")
    for threads in (1, 3):
        with pytest.raises(BudgetError, match=r"at least \d+ ") as caught:
            run(plan, tmp_path / "never", RunOptions(ram=1, threads=threads, chunk=BLOCK))
        least = int(str(caught.value).split("at least ")[1].split()[0])
        run(plan, merge.out, RunOptions(ram=least, threads=threads, chunk=BLOCK, overwrite=True))
        assert same_files(merge.out, tmp_path / "roomy")


def test_too_small_a_budget_names_the_tensor_and_what_it_needs(tmp_path):
    plan = make_merge(tmp_path, "tsvm", **WIDE).plan()
    with pytest.raises(
        BudgetError, match=r"tsvm needs \d+ for model\.layers\.0\.mlp\.\w+\.weight, which it takes whole"
    ):
        run(plan, tmp_path / "out", RunOptions(ram=2 << 20))
    assert not (tmp_path / "out").exists()


def test_adapters_are_folded_in(tmp_path):
    merge = make_merge(tmp_path, "task_arithmetic_sb", **WIDE)
    write_adapter(tmp_path / "adapter", {"model.layers.0.mlp.down_proj": (256, 384)}, rank=4)
    merge.recipe = merge.recipe.replace(f"{tmp_path}/model1", f"{tmp_path}/model1+{tmp_path}/adapter")
    plan = merge.plan()
    run(plan, merge.out, RunOptions(chunk=BLOCK))
    assert_same_tensors(outputs_of(merge.out), expected(plan))


def test_nan_ends_in_one_error_that_names_the_tensor(tmp_path):
    extra = {"model.layers.0.mlp.up_proj.weight": torch.full((384, 256), float("nan"), dtype=torch.bfloat16)}
    merge = make_merge(tmp_path, "iso_c", extra=extra, **WIDE)
    with pytest.raises(FastmergeError, match=r"model\.layers\.0\.mlp\.up_proj\.weight: holds 98304 NaN"):
        run(merge.plan(), merge.out)
    assert not merge.out.exists()
