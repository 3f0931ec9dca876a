"""Bits of every rule: those of its formula, of averages of checkpoints, and of a run that was not stopped."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from averaged_models import RULES, STEPS, Net, by_hand, same, snapshot, train
from safetensors.torch import load_file, save_file
from torch import nn

import fastmerge
from fastmerge.errors import InvalidInput
from fastmerge.training import Averager, ema, lawa, power, swa, window
from fastmerge.training import memory as placement


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


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=pytest.mark.compiled)])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_every_rule_has_the_bits_of_its_formula(backend, device, monkeypatch):
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
