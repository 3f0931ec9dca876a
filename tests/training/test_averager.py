"""Averages while training: bits of every rule, what is averaged, and models that get an average for a while."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fastmerge
from fastmerge.errors import FastmergeError, InvalidInput
from fastmerge.kernels import why_no_cpu_extension
from fastmerge.training import Averager, ema, lawa, power, rule_of, swa, window
from fastmerge.training import memory as placement

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


def expected_of(name, values):
    """Return the average of the values at steps 1, 2, .. as its formula has it."""
    n = len(values)
    if name == "ema":
        return by_hand([1 - 0.9] * n, values)
    if name == "warm":
        return by_hand([1 - min(0.999, (1 + k) / (10 + k)) for k in range(n)], values)
    if name == "power":
        return by_hand([1 - (1 - 1 / (k + 1)) ** 7.94 for k in range(n)], values)
    if name == "swa":
        taken = values[2::2]  # steps 3, 5, ..
        return by_hand([1 / (k + 1) for k in range(len(taken))], taken)
    if name == "lawa":
        taken, weights = values[-4:], [0.25] * 4
    else:
        taken = values[3::2]
        weights = fastmerge.schedules.schedule_of("1-sqrt").weights(len(taken))
    total = np.float32(weights[0]) * taken[0].float()
    for weight, value in zip(weights[1:], taken[1:], strict=True):
        total = total + np.float32(weight) * value.float()
    return total


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_every_rule_has_the_bits_of_its_formula(backend, device, monkeypatch):
    if backend == "cpu" and (why := why_no_cpu_extension()):
        pytest.skip(why)
    monkeypatch.setattr(placement, "STAGED_BYTES", 600)  # several batches
    model = Net()
    averager = Averager(model, RULES, device=device, backend=backend)
    assert averager.names == tuple(RULES)
    values = []
    for step in range(1, STEPS + 1):
        train(model, step)
        averager.update()
        values.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
    assert averager.step == STEPS and averager.count("swa") == 5
    for rule in RULES:
        found = averager.weights(rule, torch.float32)
        same(found, {name: expected_of(rule, [value[name] for value in values]) for name in values[0]})
        rounded = {name: found[name].to(parameter.dtype) for name, parameter in model.named_parameters()}
        same(averager.weights(rule), rounded)
        with averager.swapped(which=rule):
            same(dict(model.named_parameters()), rounded)
        same(dict(model.named_parameters()), values[-1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available")
@pytest.mark.parametrize("device", [None, "cpu"])
def test_on_a_gpu_the_bits_are_those_of_the_host(device, monkeypatch):
    monkeypatch.setattr(placement, "STAGED_BYTES", 600)
    here, there = Net(), Net().cuda()
    ours, theirs = Averager(here, RULES), Averager(there, RULES, device=device)
    for step in range(1, STEPS + 1):
        train(here, step)
        there.load_state_dict(here.state_dict())
        ours.update()
        theirs.update()
    for rule in RULES:
        with theirs.swapped(which=rule):
            same({name: weight.cpu() for name, weight in there.named_parameters()}, ours.weights(rule))


def test_in_bfloat16_each_step_is_rounded_once():
    model, values = Net(), []
    averager = Averager(model, {"ema": ema(0.9), "lawa": lawa(2)}, dtype=torch.bfloat16)
    for step in range(1, STEPS):
        train(model, step)
        averager.update()
        values.append(model.norm.weight.detach().clone())
    expected = by_hand([1 - 0.9] * len(values), values, torch.bfloat16)
    assert torch.equal(averager.weights("ema", torch.bfloat16)["norm.weight"], expected)
    # What lawa keeps has the dtype of the parameters in any case.
    assert torch.equal(averager.weights("lawa")["norm.weight"], 0.5 * values[-2] + 0.5 * values[-1])
    with pytest.raises(InvalidInput, match="would stand still"):
        Averager(model, "ema:0.999", dtype=torch.bfloat16)
    with pytest.raises(InvalidInput, match="would stand still"):
        Averager(model, "swa", dtype=torch.bfloat16)


def test_weights_that_stay_are_their_average():
    weight = nn.Parameter(torch.randn(4099) * 0.02, requires_grad=False)
    averager = Averager([weight], [ema(0.9999), swa(), power(16.97)])
    for _ in range(300):
        averager.update()
    for name in averager.names:
        assert torch.equal(averager.weights(name)["0"], weight)


def test_a_step_is_torch_lerp_but_for_rounding():
    weight = nn.Parameter(torch.randn(10007))
    averager = Averager([weight], "ema:0.999")
    for _ in range(20):
        before = averager.weights()["0"] if averager.count() else weight.detach().clone()
        with torch.no_grad():
            weight += 0.1 * torch.randn(10007)
        averager.update()
        if averager.count() > 1:
            lerp = torch.lerp(before, weight.detach(), 1 - 0.999)
            ulp = torch.nextafter(lerp.abs(), torch.tensor(torch.inf)) - lerp.abs()
            # Half an ulp for each sum; u v (|x| + |s|) for each product and difference: three here, two there.
            small = 5 * 2**-24 * (1 - 0.999) * (before.abs() + weight.detach().abs())
            assert ((averager.weights()["0"] - lerp).abs() <= ulp + small).all()


def test_windows_have_the_bits_of_averages_of_checkpoints(tmp_path):
    model = nn.Linear(24, 16, dtype=torch.bfloat16)
    averager = Averager(model, {"last": lawa(3, every=2), "decay": window(range(4, 13, 2), "cosine")})
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            model.weight.add_(torch.randn(16, 24))
        averager.update(step)
        if step % 2 == 0:
            folder = tmp_path / f"checkpoint-{step}"
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps({"model_type": "linear", "architectures": ["Linear"]}))
            save_file(snapshot(model), folder / "model.safetensors", {"format": "pt"})
    fastmerge.average(str(tmp_path / "checkpoint-*"), tmp_path / "last", schedule="lawa:3")
    fastmerge.average(str(tmp_path / "checkpoint-*"), tmp_path / "decay", schedule="cosine", last=5)
    for name in averager.names:
        same(averager.weights(name), load_file(tmp_path / name / "model.safetensors"))


def test_a_resumed_run_has_the_same_bits(tmp_path):
    def run(model, averager, steps):
        for step in steps:
            train(model, step)
            averager.update()

    whole = Net()
    reference = Averager(whole, RULES, buffers="average")
    run(whole, reference, range(1, STEPS + 1))
    first = Net()
    stopped = Averager(first, RULES, buffers="average")
    run(first, stopped, range(1, 8))
    torch.save({"model": first.state_dict(), "averager": stopped.state_dict()}, tmp_path / "state.pt")
    second = Net(seed=1)
    resumed = Averager(second, RULES, buffers="average")
    state = torch.load(tmp_path / "state.pt")
    second.load_state_dict(state["model"])
    resumed.load_state_dict(state["averager"])
    run(second, resumed, range(8, STEPS + 1))
    for name in RULES:
        same(resumed.weights(name, torch.float32), reference.weights(name, torch.float32))


def test_what_is_averaged():
    model = Net()
    model.low.requires_grad_(False)
    averager = Averager(model, "swa", trainable_only=True)
    train(model, 1)
    averager.update()
    names = averager.weights().keys()
    assert "embed.weight" in names and "head.weight" not in names  # tied: once
    assert not any(name.startswith("low.") for name in names)
    assert not any("running" in name for name in names)
    model.low.requires_grad_(True)
    with pytest.raises(InvalidInput, match="unfrozen since"):
        averager.update()
    assert averager.step == 1
    averager = Averager(model, "swa")
    averager.update()
    model.low.requires_grad_(False)
    averager.update()
    assert averager.count() == 2


def test_buffers_are_copied_or_averaged():
    copied, averaged = Net(), Net()
    plain, whole = Averager(copied, "swa"), Averager(averaged, "swa", buffers="average")
    seen = []
    for step in (1, 2):
        for model, averager in ((copied, plain), (averaged, whole)):
            train(model, step)
            averager.update()
        seen.append(averaged.norm.running_mean.clone())
    assert "inverse" not in whole.weights()
    target = Net(seed=2)
    plain.copy_to(target)
    assert torch.equal(target.norm.running_mean, seen[1]) and target.norm.num_batches_tracked == 2
    whole.copy_to(target)
    assert torch.equal(target.norm.running_mean, by_hand([1, 0.5], seen))
    assert target.norm.num_batches_tracked == 2
    assert target.head.weight is target.embed.weight
    # A model that moves has new buffers.
    averaged.norm.running_mean = averaged.norm.running_mean + 1
    before = whole.weights()["norm.running_mean"]
    whole.update()
    assert not torch.equal(whole.weights()["norm.running_mean"], before)


def test_a_swap_is_undone_by_exceptions_and_guarded():
    model = Net()
    averager = Averager(model, ["ema:0.5", "swa"])
    with pytest.raises(InvalidInput, match="no step was taken in so far"), averager.swapped(which="swa"):
        pass
    for step in (1, 2, 3):
        train(model, step)
        averager.update()
    before = snapshot(model)
    with pytest.raises(InvalidInput, match=r"the averages are ema:0\.5, swa"), averager.swapped():
        pass
    with pytest.raises(KeyError, match="stop"), averager.swapped(which="swa") as given:
        assert given is model
        inner = snapshot(model)
        with averager.swapped(which="ema:0.5"):
            assert not torch.equal(model.conv.weight, inner["conv.weight"])
        same(snapshot(model), inner)
        with pytest.raises(InvalidInput, match="leave the block"):
            averager.update()
        raise KeyError("stop")
    same(snapshot(model), before)
    other = copy.deepcopy(model)
    with averager.swapped(other, "swa"):
        averager.update()  # another model's swap does not matter
    same(snapshot(other), before)
    loss = (model.conv.weight**2).sum()
    with averager.swapped(which="swa"), pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_problems_are_named():
    model = Net()
    averager = Averager(model, {"w": window([2, 4])})
    averager.update(2)
    with pytest.raises(InvalidInput, match=r"the last one was 2"):
        averager.update(2)
    with pytest.raises(InvalidInput, match="step 4 is one of its steps"):
        averager.update(5)
    assert "1 of the 2 steps" in averager.why_not_yet()
    with pytest.raises(InvalidInput, match="still to come"):
        averager.copy_to()
    with pytest.raises(InvalidInput, match=r"weight: has dtype torch.float64"):
        Averager(nn.Linear(2, 2, dtype=torch.float64))
    with pytest.raises(InvalidInput, match="device meta"):
        Averager(nn.Linear(2, 2, device="meta"))
    with pytest.raises(InvalidInput, match="no parameters to average"):
        Averager([])
    with pytest.raises(InvalidInput, match="expected copy or average"):
        Averager(model, buffers="keep")
    model.conv.weight.data = torch.zeros(1, 2)
    with pytest.raises(InvalidInput, match=r"conv.weight: has shape \(1, 2\)"):
        averager.update(4)
    model.conv.weight = nn.Parameter(torch.zeros(4, 3, 3, 3))
    with pytest.raises(InvalidInput, match=r"conv\.weight: is another parameter"), averager.swapped():
        pass
    with pytest.raises(InvalidInput, match=r"conv\.weight: is averaged, and the model has no such"):
        averager.copy_to(nn.Linear(2, 2))
    with pytest.raises(InvalidInput, match="no save_pretrained"):
        averager.save_pretrained("folder")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("ema", "expected swa"),
        ("ema:1", r"in \[0, 1\)"),
        ("lawa:0", "1 or more"),
        ("wma", "'wma'"),
        ("swa:1", "'swa:1'"),
    ],
)
def test_rules_that_are_none(text, match):
    with pytest.raises(InvalidInput, match=match):
        rule_of(text)


def test_rules_by_text():
    assert [rule_of(text).text for text in ("swa", "ema:0.99", "lawa:3", "power:6.94")] == [
        "swa", "ema:0.99", "lawa:3", "power:6.94",
    ]  # fmt: skip
    for wrong in (
        lambda: window([3, 2]),
        lambda: window([1, 2], [1.0]),
        lambda: window([1], "none"),
        lambda: power(-2),
    ):
        with pytest.raises(InvalidInput):
            wrong()
    with pytest.raises(InvalidInput, match="twice"):
        Averager([nn.Parameter(torch.ones(1))], ["swa", swa()])
    assert Averager([nn.Parameter(torch.ones(1))], [window([3, 5]), "swa"]).names == ("window:3-5", "swa")
    assert window(range(1, 9), "lawa:2").weights == {7: 0.5, 8: 0.5}


def test_states_of_others_are_refused():
    model = Net()
    averager = Averager(model, {"a": "ema:0.9"})
    averager.update()
    state = averager.state_dict()
    for other, match in [
        (Averager(model, {"b": "ema:0.9"}), "has the averages a; expected b"),
        (Averager(model, {"a": "ema:0.8"}), "has the rule ema:0.9 in the state, ema:0.8 here"),
        (Averager(nn.Linear(2, 2), {"a": "ema:0.9"}), "has no bias in the state"),
        (Averager(model, {"a": "ema:0.9"}, dtype=torch.bfloat16), "float32 in the state, .* bfloat16 here"),
    ]:
        with pytest.raises(InvalidInput, match=match.replace("bfloat16", "torch.bfloat16")):
            other.load_state_dict(state)
        assert other.step == 0
    with pytest.raises(InvalidInput, match="no state of an Averager"):
        averager.load_state_dict({})


def test_memory_is_what_is_kept():
    model = nn.Linear(8, 8, bias=False, dtype=torch.bfloat16)
    assert Averager(model, "swa").nbytes == 4 * 64
    assert Averager(model, "lawa:5").nbytes == 5 * 2 * 64
    assert Averager(model, ["ema:0.5"], dtype=torch.bfloat16).nbytes == 2 * 64


class Saving(nn.Linear):
    fails = False

    def save_pretrained(self, folder, note=""):
        folder = Path(folder)
        folder.mkdir()
        (folder / "note").write_text(note)
        if self.fails:
            raise OSError("half way")
        save_file(snapshot(self), folder / "model.safetensors")


def test_save_pretrained_leaves_nothing_partial(tmp_path):
    model = Saving(3, 3)
    averager = Averager(model, "swa")
    averager.update()
    before = snapshot(model)
    with torch.no_grad():
        model.weight.add_(1)
    now = snapshot(model)
    model.fails = True
    with pytest.raises(FastmergeError, match="saving an average"):
        averager.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    model.fails = False
    averager.save_pretrained(tmp_path / "out", note="text")
    assert (tmp_path / "out" / "note").read_text() == "text"
    same(load_file(tmp_path / "out" / "model.safetensors"), before)
    same(snapshot(model), now)
    with pytest.raises(FastmergeError, match="exists already"):
        averager.save_pretrained(tmp_path / "out")
    averager.update()
    averager.save_pretrained(tmp_path / "out", overwrite=True)
    same(load_file(tmp_path / "out" / "model.safetensors"), averager.weights())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
