"""Train a small model with FSDP2 on the CPU, average it on its shards, stop anywhere, and go on to the bit.

    torchrun --nproc-per-node 2 examples/average_with_fsdp2.py --out run --kill-at 5    # dies after step 5
    torchrun --nproc-per-node 2 examples/average_with_fsdp2.py --out run                # goes on from step 3

It saves itself every third step, by torch.distributed.checkpoint: model, optimizer and averages. At the end the
averages lie in ``run/NAME.safetensors``, and the model that was trained in ``run/model.safetensors``.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from fastmerge.training import Averager, ema, lawa, swa

SAVE_EVERY = 3


class Block(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


def make_model() -> nn.Module:
    """Return the model in shards: widths that two ranks share unevenly, and a frozen bias."""
    torch.manual_seed(0)
    model = nn.Sequential(Block(15, 33), Block(15, 33), nn.Linear(15, 1))
    model[2].bias.requires_grad_(False)
    for block in model[:2]:
        fully_shard(block)
    return fully_shard(model)


class Run:
    """What a checkpoint holds."""

    def __init__(self, folder: Path):
        self.folder = folder
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
        return ((self.model(x) - x.sum(1, keepdim=True)) ** 2).mean()

    def train(self, steps: int, kill_at: int | None) -> None:
        for step in range(self.averager.step + 1, steps + 1):
            self.loss(step).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.averager.update(step)
            if step == kill_at:
                dist.barrier()
                os._exit(9)
            if step % SAVE_EVERY == 0:
                self.save()
                with self.averager.swapped(which="fast"), torch.no_grad():
                    self.loss(0)  # an evaluation; training goes on with what was there before

    def write(self) -> None:
        """Gather the model and each average, one after the other, for other programs."""
        given = {"model": dict(self.model.named_parameters())}
        for name in ("model", *self.averager.names):
            tensors = given.get(name) or self.averager.weights(name)
            whole = {key: tensor.detach().full_tensor() for key, tensor in tensors.items()}
            if dist.get_rank() == 0:
                save_file(whole, self.folder / f"{name}.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and results")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--kill-at", type=int, help="the step after which the run dies")
    parser.add_argument("--init", default="env://", help="how ranks find each other, as in init_process_group")
    given = parser.parse_args()
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=given.init, rank=rank, world_size=ranks)
    given.out.mkdir(parents=True, exist_ok=True)
    run = Run(given.out)
    run.load()
    run.train(given.steps, given.kill_at)
    run.write()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
