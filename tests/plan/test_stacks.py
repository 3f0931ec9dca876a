"""Models with several stacks of layers: slices cut the language model's, and only that one is counted."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from fastmerge.errors import InvalidInput

LINEAR = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"
SLICES = """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: b, layer_range: [1, 3]}]
"""


def save(folder, config, names):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: torch.ones(4, 4) for name in names}, folder / "model.safetensors")


def layers(stack, count, *parts):
    return [f"{stack}.{i}.{part}.weight" for i in range(count) for part in parts]


TEXT = [
    "language_model.embed_tokens.weight",
    *layers("language_model.layers", 3, "q", "up"),
    "language_model.norm.weight",
]
VISION = ["vision_tower.embeddings.weight", *layers("vision_tower.layers", 2, *"qkvoud"), "vision_tower.norm.weight"]
VLM = {"model_type": "llava", "text_config": {"num_hidden_layers": 3}, "vision_config": {"num_hidden_layers": 2}}


@pytest.fixture
def vlms(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        save(tmp_path / name, VLM, [*VISION, "multi_modal_projector.weight", *TEXT])


def test_a_tower_with_more_tensors_than_the_language_model(vlms, plan_of):
    assert len(plan_of(LINEAR).outputs) == len(TEXT) + len(VISION) + 1


def test_slices_cut_the_language_model(vlms, plan_of):
    plan = plan_of(SLICES)
    origin = {output.name: (output.inputs.tensors[0].model, output.inputs.tensors[0].name) for output in plan.outputs}
    for layer, (model, source) in enumerate([(0, 0), (0, 1), (1, 1), (1, 2)]):
        assert origin[f"language_model.layers.{layer}.up.weight"] == (
            model,
            f"language_model.layers.{source}.up.weight",
        )
    # A tower is whole, and lies before the layers that read what it sees.
    assert {origin[name][0] for name in [*VISION, "multi_modal_projector.weight"]} == {0}
    assert origin["language_model.norm.weight"][0] == 1
    config = json.loads(plan.files["config.json"].text)
    assert config["text_config"]["num_hidden_layers"] == 4 and config["vision_config"]["num_hidden_layers"] == 2


def test_an_incomplete_language_model(tmp_path, monkeypatch, plan_of):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        save(tmp_path / name, VLM | {"text_config": {"num_hidden_layers": 5}}, [*VISION, *TEXT])
    message = r"text_config.num_hidden_layers: is 5, but the weights hold 3 layers of language_model.layers"
    with pytest.raises(InvalidInput, match=message):
        plan_of(LINEAR)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"num_layers": 2}, [*layers("encoder.block", 2, "q"), *layers("decoder.block", 3, "q")]),
        (
            {"num_hidden_layers": 3, "encoder_layers": 3, "decoder_layers": 1},
            [*layers("model.encoder.layers", 3, "q"), *layers("model.decoder.layers", 1, "q", "k", "v", "o")],
        ),
        # One layer that is used twelve times (ALBERT).
        ({"num_hidden_layers": 12}, ["albert.encoder.albert_layer_groups.0.albert_layers.0.q.weight"]),
    ],
)  # fmt: skip
def test_counts_of_other_architectures(tmp_path, monkeypatch, plan_of, config, names):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        save(tmp_path / name, config, names)
    assert {output.name for output in plan_of(LINEAR).outputs} == set(names)
