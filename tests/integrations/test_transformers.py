"""Callbacks in a real Trainer: averages that go on to the bit, evaluation of averages, and merges at every save."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fastmerge
from fastmerge.errors import FastmergeError, InvalidInput

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
callbacks = pytest.importorskip("fastmerge.integrations.transformers")

pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages

SCHEDULES = {"ema": "ema:0.5", "last": "lawa:2", "window": fastmerge.training.window([4, 5], "linear")}


def trainer_of(folder, given=(), **arguments):
    """Return a trainer of a tiny Llama for 6 steps, which saves at 3 and 6."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=32,
        tie_word_embeddings=True,
    )  # fmt: skip
    tokens = torch.randint(0, 32, (24, 8), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": row, "labels": row} for row in tokens]
    settings = {
        "max_steps": 6, "save_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 0.05, "report_to": [],
        "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no", **arguments,
    }  # fmt: skip
    return transformers.Trainer(
        transformers.LlamaForCausalLM(config),
        transformers.TrainingArguments(output_dir=str(folder), **settings),
        train_dataset=data,
        eval_dataset={"a": data[:4], "b": data[4:8]},
        callbacks=list(given),
    )


class Recording(transformers.TrainerCallback):
    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model=None, **_):
        self.weights.append({name: weight.detach().clone() for name, weight in model.named_parameters()})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with averages that was not stopped: its folder and the weights after each step."""
    folder, recording = tmp_path_factory.mktemp("run"), Recording()
    trainer_of(folder, [recording, callbacks.AveragingCallback(SCHEDULES, every_save=True)]).train()
    return folder, recording.weights


def tensors_of(folder):
    return load_file(Path(folder) / "model.safetensors")


def same(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        assert torch.equal(found[name], expected[name]), name


def test_averages_are_saved_as_models(run):
    folder, weights = run
    for name, weight in weights[0].items():
        state = weight
        for step in weights[1:]:
            state = (0.5 * step[name] - 0.5 * state) + state
        assert torch.equal(tensors_of(folder / "averages" / "ema")[name], state)
        last = 0.5 * weights[4][name] + 0.5 * weights[5][name]
        assert torch.equal(tensors_of(folder / "averages" / "last")[name], last), weight.shape
    assert sorted(path.name for path in (folder / "averages").iterdir()) == ["ema", "last", "window"]
    # A window that is not over has no average yet.
    assert sorted(path.name for path in (folder / "checkpoint-3" / "averages").iterdir()) == ["ema", "last"]
    same(tensors_of(folder / "checkpoint-6"), weights[5])
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder / "averages" / "ema")
    same(dict(loaded.named_parameters()), tensors_of(folder / "averages" / "ema"))


def test_a_resumed_run_saves_the_same_bits(run, tmp_path):
    folder, _ = run
    shutil.copytree(folder / "checkpoint-3", tmp_path / "checkpoint-3")
    trainer_of(tmp_path, [callbacks.AveragingCallback(SCHEDULES)]).train(resume_from_checkpoint=True)
    for name in SCHEDULES:
        same(tensors_of(tmp_path / "averages" / name), tensors_of(folder / "averages" / name))
    shutil.rmtree(tmp_path / "checkpoint-3" / "averager")
    with pytest.raises(FastmergeError, match=r"averager: there is no state of averages \(say resume_from"):
        trainer_of(tmp_path, [callbacks.AveragingCallback(SCHEDULES)]).train(str(tmp_path / "checkpoint-3"))


def test_an_average_is_evaluated(run, tmp_path, monkeypatch):
    folder, weights = run
    trainer = trainer_of(tmp_path, eval_strategy="steps", eval_steps=6)
    seen = []
    plain = type(trainer).evaluation_loop

    def watched(self, *args, **kwargs):
        seen.append({name: weight.detach().clone() for name, weight in self.model.named_parameters()})
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(type(trainer), "evaluation_loop", watched)
    callbacks.AveragingCallback(SCHEDULES, folder=tmp_path / "elsewhere").attach(trainer, evaluate="ema")
    trainer.train()
    assert len(seen) == 2  # datasets
    for given in seen:
        same(given, tensors_of(folder / "averages" / "ema"))
    same(tensors_of(tmp_path / "checkpoint-6"), weights[5])
    same(tensors_of(tmp_path / "elsewhere" / "ema"), tensors_of(folder / "averages" / "ema"))


def test_checkpoints_are_merged_as_they_are_saved(run, tmp_path):
    folder, weights = run
    recipe = {
        "merge_method": "linear",
        "models": [
            {"model": callbacks.CHECKPOINT, "parameters": {"weight": 0.75}},
            {"model": str(folder / "checkpoint-3"), "parameters": {"weight": 0.25}},
        ],
    }
    trainer_of(tmp_path, [callbacks.MergeAtSaveCallback(recipe, folder="soup")]).train()
    assert fastmerge.verify(tmp_path / "checkpoint-6" / "soup").ok
    expected = {name: 0.75 * weight + 0.25 * weights[2][name] for name, weight in weights[5].items()}
    same(tensors_of(tmp_path / "checkpoint-6" / "soup"), expected)
    assert (tmp_path / "checkpoint-3" / "soup").is_dir()


def test_mistakes_show_before_training(run, tmp_path):
    folder, _ = run
    with pytest.raises(InvalidInput, match="names no model CHECKPOINT"):
        callbacks.MergeAtSaveCallback({"models": [{"model": "one"}]})
    text = f"merge_method: liner\nmodels:\n- model: CHECKPOINT\n- model: {folder / 'checkpoint-3'}\n"
    recording = Recording()
    with pytest.raises(InvalidInput, match="liner"):
        trainer_of(tmp_path, [recording, callbacks.MergeAtSaveCallback(text)]).train()
    assert not recording.weights
