"""A model that changes by the step, rules to average it by, and the arithmetic of a running average."""

from __future__ import annotations

import torch
from torch import nn

from fastmerge.training import ema, lawa, power, swa, window

STEPS = 12
RULES = {
    "ema": ema(0.9),
    "warm": ema(0.999, warmup=True),
    "power": power(6.94),
    "swa": swa(start=3, every=2),
    "lawa": lawa(4),
    "window": window(range(4, 13, 2), "1-sqrt"),
}


class Net(nn.Module):
    """A layer of each kind: bfloat16, float32, float16, tied, with buffers, a strange layout, and no elements."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(7, 5, dtype=torch.bfloat16)
        self.norm = nn.BatchNorm1d(5)
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.low = nn.Linear(33, 31, dtype=torch.float16)
        self.nothing = nn.Parameter(torch.empty(0, 5))
        self.head = nn.Linear(5, 7, bias=False, dtype=torch.bfloat16)
        self.head.weight = self.embed.weight
        self.register_buffer("inverse", torch.rand(3), persistent=False)


def train(model, step):
    """Change every parameter and buffer, by the step alone."""
    generator = torch.Generator().manual_seed(1000 + step)
    with torch.no_grad():
        for tensor in (*model.parameters(), model.norm.running_mean):
            if tensor.requires_grad or tensor is model.norm.running_mean:
                tensor.copy_(0.9 * tensor.float() + 0.1 * torch.randn(tensor.shape, generator=generator))
        model.norm.num_batches_tracked += 1


def snapshot(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]), name


def by_hand(shares, values, dtype=torch.float32):
    """Return ``s + (v x - v s)`` over values, each operation rounded to float32, each step to ``dtype``."""
    state = values[0].float().to(dtype)
    for share, value in zip(shares[1:], values[1:], strict=True):
        v, s = torch.tensor(share, dtype=torch.float32), state.float()
        state = (((v * value.float()) - (v * s)) + s).to(dtype)
    return state
