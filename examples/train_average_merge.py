"""Train three runs of a small model with FSDP2 on the CPU, average each, merge them on their shards, and verify.

    torchrun --nproc-per-node 2 examples/train_average_merge.py --out work --kill-at 5   # dies in the second run
    torchrun --nproc-per-node 2 examples/train_average_merge.py --out work               # goes on from its step 3

Each run saves itself every third step, by torch.distributed.checkpoint: model, optimizer and averages. In the end
``work/merged-dcp`` is the merge as a checkpoint of training, and ``work/merged`` the same with the names of the hub.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import fastmerge
from fastmerge.conversion import to_dcp, to_hub
from fastmerge.training import Averager, ema, lawa, swa

STEPS, SAVE_EVERY = 8, 3
RUNS = {"sum": 1.0, "negative": -1.0, "double": 2.0}
"""What each run learns: so many times the sum of its inputs."""
KILLED = "negative"
TIES = {"weight": 1.0, "density": 0.5}
NAMES = {"{i}.{kind}.{part}": "model.layers.{i}.{kind}.{part}", "2.{part}": "head.{part}"}
"""The trainer's names of tensors, and those of the output for the hub."""


class Block(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


def make_model() -> nn.Module:
    """Return the model in shards, as every run begins: widths that two ranks share unevenly, and a frozen bias."""
    torch.manual_seed(0)
    model = nn.Sequential(Block(15, 33), Block(15, 33), nn.Linear(15, 1))
    model[2].bias.requires_grad_(False)
    for block in model[:2]:
        fully_shard(block)
    return fully_shard(model)


class Run:
    """One run: what a checkpoint holds, and where it lies."""

    def __init__(self, folder: Path, factor: float = 1.0):
        self.folder, self.factor = folder, factor
        self.model = make_model()
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=0.01)
        self.averager = Averager(self.model, {"fast": ema(0.5), "slow": ema(0.9), "mean": swa(), "last": lawa(3)})

    def state(self) -> dict:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "averager": self.averager}

    def save(self) -> None:
        dcp.save(self.state(), checkpoint_id=self.folder / f"step-{self.averager.step}")

    def load(self) -> None:
        """Go on from the newest checkpoint that is whole, if there is one: DCP writes ``.metadata`` last."""
        found = [path.parent for path in self.folder.glob("step-*/.metadata")]
        if found:
            state = self.state()
            dcp.load(state, checkpoint_id=max(found, key=lambda path: int(path.name.removeprefix("step-"))))
            set_state_dict(
                self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
            )

    def loss(self, step: int) -> Tensor:
        x = torch.randn(8, 15, generator=torch.Generator().manual_seed(100 * step + dist.get_rank()))
        return ((self.model(x) - self.factor * x.sum(1, keepdim=True)) ** 2).mean()

    def train(self, steps: int, kill_at: int | None = None, saving: bool = True) -> None:
        for step in range(self.averager.step + 1, steps + 1):
            self.loss(step).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.averager.update(step)
            if step == kill_at:
                dist.barrier()
                os._exit(9)
            if saving and step % SAVE_EVERY == 0:
                self.save()
                with self.averager.swapped(which="fast"), torch.no_grad():
                    self.loss(0)  # an evaluation; training goes on with what was there before


def save_once(state: dict, folder: Path) -> None:
    """Save a state that the same command always gives, unless it is there."""
    there = (folder / ".metadata").exists()
    dist.barrier()  # no rank looks for what another one has begun
    if not there:
        dcp.save(state, checkpoint_id=folder)


def train_all(out: Path, kill_at: int | None) -> dict[str, Run]:
    """Train every run, from where it was, and save the mean of its weights."""
    runs = {}
    for name, factor in RUNS.items():
        runs[name] = run = Run(out / name, factor)
        run.load()
        run.train(STEPS, kill_at if name == KILLED else None)
        save_once({"model": run.averager.weights("mean")}, out / name / "mean")
    return runs


def merge(out: Path, runs: dict[str, Run]) -> nn.Module:
    """Merge the means into a model on the mesh: each rank the part that it holds. Save it in both formats."""
    model = make_model()
    save_once({"model": model.state_dict()}, out / "base")
    fastmerge.merge_(model, [run.averager.weights("mean") for run in runs.values()], method="ties", **TIES)
    save_once({"model": model.state_dict()}, out / "merged-dcp")
    if dist.get_rank() == 0:
        to_hub(out / "merged-dcp", out / "merged", names=NAMES, overwrite=True)
    dist.barrier()
    return model


def verify(out: Path, model: nn.Module, runs: dict[str, Run]) -> None:
    """Hold three promises: stops leave no trace, shards change no bit, and formats change no bit."""
    for name, run in runs.items():
        never_stopped = Run(out / name, RUNS[name])
        never_stopped.train(STEPS, saving=False)
        same(run.averager.weights("mean"), never_stopped.averager.weights("mean"))
    if dist.get_rank() == 0:
        models = [{"model": str(out / name / "mean"), "parameters": TIES} for name in RUNS]
        recipe = {"merge_method": "ties", "base_model": str(out / "base"), "models": models, "names": NAMES}
        fastmerge.merge(recipe, out / "by-one-process", overwrite=True)
        assert all(row.changed == 0 for row in fastmerge.diff(out / "by-one-process", out / "merged").tensors)
        assert fastmerge.verify(out / "merged").ok and fastmerge.verify(out / "by-one-process").ok
        if not (out / "back").exists():
            to_dcp(out / "merged", out / "back", names=NAMES)
    dist.barrier()
    other = make_model()
    dcp.load({"model": (state := other.state_dict())}, checkpoint_id=out / "back")
    same(state, model.state_dict())


def work(out: Path, kill_at: int | None = None) -> None:
    """Do all of it on this rank."""
    out.mkdir(parents=True, exist_ok=True)
    runs = train_all(out, kill_at)
    model = merge(out, runs)
    verify(out, model, runs)
    dist.barrier()


def same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name].to_local(), tensor.to_local()), name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and results")
    parser.add_argument("--kill-at", type=int, help="the step of the second run after which everything dies")
    parser.add_argument("--init", default="env://", help="how ranks find each other, as in init_process_group")
    given = parser.parse_args()
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=given.init, rank=rank, world_size=ranks)
    work(given.out, given.kill_at)
    dist.destroy_process_group()
    if rank == 0:
        print(f"{given.out / 'merged-dcp'} and {given.out / 'merged'}: merged on {ranks} ranks, and verified")


if __name__ == "__main__":
    main()
