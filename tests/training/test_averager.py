"""What is averaged while training, models that get an average for a while, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from averaged_models import Net, by_hand, same, snapshot, train
from safetensors.torch import load_file, save_file
from torch import nn

from fastmerge.errors import FastmergeError, InvalidInput
from fastmerge.training import Averager, power, rule_of, swa, window


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
    with pytest.raises(InvalidInput, match=r"conv\.weight: is another parameter"):
        averager.update(4)
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
