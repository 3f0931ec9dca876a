"""The worked example on two ranks: ``python averaging_ranks.py EXAMPLE FOLDER`` ends with 0 if all is well.

The first time the ranks check averages on shards, begin the example, and die in it; the second time they go on.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import end_well
from safetensors.torch import load_file, save_file
from shard_worker import refused
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from fastmerge.errors import InvalidInput, OutputError, ShardError
from fastmerge.training import Averager

STEPS = 8


def whole(tensors):
    return {name: tensor.detach().full_tensor() for name, tensor in tensors.items()}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        assert torch.equal(found[name], expected[name]), name


def averages(run):
    return {name: whole(run.averager.weights(name)) for name in run.averager.names}


def check_whole_run(run):
    """Train, and compare each average with its formula on whole tensors; no rank asks another one."""
    seen = []
    plain = run.averager.update

    def update(step):
        with CommDebugMode() as communication:
            plain(step)
        assert communication.get_total_counts() == 0
        seen.append(whole(dict(run.model.named_parameters())))

    run.averager.update = update
    run.train(STEPS)
    for name, share in (("fast", lambda n: 0.5), ("slow", lambda n: 1 - 0.9), ("mean", lambda n: 1 / (n + 1))):
        expected = dict(seen[0])
        for n, given in enumerate(seen[1:], start=1):
            v = torch.tensor(share(n), dtype=torch.float32)
            expected = {key: (v * x - v * expected[key]) + expected[key] for key, x in given.items()}
        same(whole(run.averager.weights(name)), expected)
    frozen = run.averager.weights("slow")["2.bias"]
    assert torch.equal(frozen.full_tensor(), seen[0]["2.bias"])


def check_swap(run):
    """Swapped weights are computed with, also where a forward pass left whole ones; and so are those put back."""
    with torch.no_grad():
        ours, before = whole(dict(run.model.named_parameters())), run.loss(0)
        with run.averager.swapped(which="mean"):
            inside = run.loss(0)
        after = run.loss(0)
        run.model.reshard()
        same(whole(dict(run.model.named_parameters())), ours)
        run.loss(0)
        run.averager.copy_to(which="mean")
        assert torch.equal(before, after) and torch.equal(inside, run.loss(0)) and not torch.equal(inside, before)


class Saving(nn.Sequential):
    def save_pretrained(self, folder, state_dict):
        os.mkdir(folder)
        save_file(state_dict, Path(folder) / "model.safetensors")


def check_saving(run, folder):
    type(run.model).save_pretrained = Saving.save_pretrained
    expected = whole(run.averager.weights("last"))
    run.averager.save_pretrained(folder, which="last")
    same(load_file(folder / "model.safetensors"), expected)
    error, words = (ShardError, "on rank 0: saving .*") if dist.get_rank() else (OutputError, "")
    refused(error, f"{words}exists already", lambda: run.averager.save_pretrained(folder, which="last"))


def check_placements(folder):
    """Average tensors that are cut across rows or columns, unevenly, with a rank that has nothing, or whole on each."""
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    full = {"rows": torch.randn(5, 4), "columns": torch.randn(4, 5), "one": torch.randn(1, 3), "whole": torch.randn(3)}
    places = {"rows": Shard(0), "columns": Shard(1), "one": Shard(0), "whole": Replicate()}
    given = {name: distribute_tensor(tensor.clone(), mesh, [places[name]]) for name, tensor in full.items()}
    averager = Averager(given, {"ema": "ema:0.5", "last": "lawa:2"})
    averager.update()
    for tensor in given.values():
        tensor.to_local().mul_(3)
    averager.update()
    dcp.save({"averager": averager}, checkpoint_id=folder)
    resumed = Averager(given, {"ema": "ema:0.5", "last": "lawa:2"})
    dcp.load({"averager": resumed}, checkpoint_id=folder)
    for name in averager.names:
        expected = {key: (0.5 * (3 * x) - 0.5 * x) + x for key, x in full.items()}
        if name == "last":
            expected = {key: 0.5 * x + 0.5 * (3 * x) for key, x in full.items()}
        same(whole(averager.weights(name)), expected)
        same(whole(resumed.weights(name)), expected)
    try:
        averager.copy_to({name: tensor.clone() for name, tensor in full.items()}, "ema")
    except InvalidInput as error:
        assert "rows: is (5, 4), and its average (5, 4) (Shard(dim=0),)" in str(error), error
    else:
        raise AssertionError("whole tensors take no shards")


def check_averages(module, folder):
    """A run that is not stopped and one that is, swaps, saving, and every placement."""
    reference = module.Run(folder / "whole")
    check_whole_run(reference)
    stopped = module.Run(folder / "stopped")
    stopped.train(4)  # what came after step 3 is lost
    resumed = module.Run(folder / "stopped")
    resumed.load()
    assert resumed.averager.step == 3
    resumed.train(STEPS)
    for name, expected in averages(reference).items():
        same(whole(resumed.averager.weights(name)), expected)
    check_swap(reference)
    check_saving(resumed, folder / "saved")
    check_placements(folder / "placements")
    dist.barrier()


def be_rank(rank, module, folder, kill_at) -> NoReturn:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{kill_at}", rank=rank, world_size=2)
    if kill_at:
        check_averages(module, folder)
    module.work(folder / "work", kill_at)
    end_well()


def on_two_ranks(*arguments) -> list[int]:
    """Return how two processes ended. They are forks: what is imported here is imported once."""
    ranks = []
    for rank in range(2):
        process = os.fork()
        if not process:
            try:
                be_rank(rank, *arguments)
            except BaseException:
                traceback.print_exc()
                os._exit(1)  # the other rank hears of it as its connection ends
        ranks.append(process)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in ranks]


def main(example, folder):
    spec = importlib.util.spec_from_file_location("example", example)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert on_two_ranks(module, folder, 5) == [9, 9]
    assert {path.name for path in (folder / "work").iterdir()} == {"sum", "negative"}, "killed in the second run"
    assert on_two_ranks(module, folder, 0) == [0, 0]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
