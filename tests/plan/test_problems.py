"""What a plan refuses: every finding at once, each with its place and its remedy."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from checkpoint_files import write_adapter
from tiny_models import save_model

from fastmerge.dtypes import int64
from fastmerge.errors import InvalidInput

LINEAR = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"
UP = "model.layers.1.mlp.up_proj.weight"


def problems(plan_of, text=LINEAR, **options):
    with pytest.raises(InvalidInput) as caught:
        plan_of(text, **options)
    return [str(problem) for problem in caught.value.problems]


def expect_one(found, *parts):
    assert len(found) == 1, found
    for part in parts:
        assert part in found[0]


def edit_config(folder, **changes):
    with open(f"{folder}/config.json") as file:
        config = json.load(file)
    with open(f"{folder}/config.json", "w") as file:
        json.dump(config | changes, file)


def save_b(base, **changes):
    """Save ``b`` as the base with some tensors changed; None removes one."""
    tensors = {name: t for name, t in (base | changes).items() if t is not None}
    save_model("b", tensors, tie_word_embeddings=False)


@pytest.fixture(autouse=True)
def single_files(family):
    shutil.rmtree("b")
    save_model("b", family)


def test_missing_tensor(family, plan_of):
    save_b(family, **{UP: None})
    found = problems(plan_of, LINEAR + "missing: error\n")
    expect_one(found, "/b: 1 tensors of a are missing: " + UP, "merge models of one architecture")


def test_extra_tensors(family, plan_of):
    save_b(family, **{f"value_head.{i}.weight": torch.ones(2) for i in range(9)})
    found = problems(plan_of, LINEAR + "missing: error\n")
    expect_one(found, "/a: 9 tensors of b are missing: value_head.0.weight", ", ...")


def test_missing_head(family, plan_of):
    save_b(family, **{"lm_head.weight": None})
    expect_one(problems(plan_of), "/b: 1 tensors of a are missing: lm_head.weight", "head is not tied", "incomplete")


def test_shapes(family, plan_of):
    save_b(family, **{UP: torch.ones(3, 4), "model.norm.weight": torch.ones(7)})
    expect_one(problems(plan_of), UP, "and 1 more tensors disagree")


def test_vocabulary(family, plan_of):
    wider = {name: torch.ones(300, 64) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    save_b(family, **wider)
    expect_one(problems(plan_of), "the vocabulary has 300 rows, that of a has 256", "tokenizer_source: base or union")


def test_float8(family, plan_of):
    save_b(family, **{UP: family[UP].to(torch.float8_e4m3fn)})
    expect_one(problems(plan_of), "1 tensors are float8_e4m3fn: codes without the scales", UP, "dequantize")


def test_config_that_says_quantized(family, plan_of):
    edit_config("b", quantization_config={"quant_method": "gptq"})
    expect_one(problems(plan_of), "b/config.json: says that the weights are quantized (gptq), but no tensor is")


def test_integers(family, plan_of):
    steps = {"steps": torch.tensor([1, 2, 3])}
    save_model("a", family | steps)
    save_b(family, **steps)
    outputs = {output.name: output for output in plan_of(LINEAR + "dtype: float32\n").outputs}
    assert (outputs["steps"].method, outputs["steps"].dtype) == ("copy", int64)
    save_b(family, steps=torch.tensor([1, 2, 4]))
    expect_one(problems(plan_of), "steps: a tensor of int64 differs between the models", "must be equal")
    save_b(family, steps=torch.tensor([1, 2, 3], dtype=torch.int32))
    expect_one(problems(plan_of), "steps: a tensor of int32, int64 differs")
    save_b(family, steps=torch.tensor([1.0, 2.0, 3.0]))
    expect_one(problems(plan_of), "steps: a tensor of float32, int64 differs")


def test_model_types(family, plan_of):
    edit_config("b", model_type="mistral")
    expect_one(problems(plan_of), "b/config.json: model_type is 'mistral', but a is 'llama'", "allow mixed types")
    assert plan_of(LINEAR, allow_mixed_types=True).outputs


def test_incomplete_layers(family, plan_of):
    edit_config("a", num_hidden_layers=6)
    expect_one(
        problems(plan_of), "num_hidden_layers: is 6, but the weights hold 4 layers of model.layers", "incomplete"
    )


def test_parameters_that_the_method_refuses(family, plan_of):
    text = LINEAR.replace("weight: 1", "weight: [{filter: mlp, value: 0}, {value: 1}]")
    found = problems(plan_of, text)
    expect_one(found, "model.layers.0.mlp.", "the weights (0.0, 0.0) cancel; set normalize: false")


def test_missing_value_behind_a_filter(family, plan_of):
    text = LINEAR.replace("weight: 1", "weight: [{filter: mlp, value: 1}]")
    expect_one(problems(plan_of, text), "needs 'weight'", "nothing sets it for")


def test_adapter_that_fits_nothing(family, plan_of):
    write_adapter("lora", {"model.layers.9.mlp.up_proj": (160, 64), "model.layers.0.mlp.up_proj": (160, 3)})
    found = problems(plan_of, LINEAR.replace("{model: b}", "{model: b+lora}"))
    assert len(found) == 2
    assert "1 of the 2 tensors that the adapter changes are not in the model: model.layers.9.mlp.up_proj" in found[0]
    assert "model.layers.0.mlp.up_proj.weight [160, 3] for [160, 64]" in found[1]


def test_everything_at_once(family, plan_of):
    save_b(
        family,
        **{UP: None, "model.norm.weight": torch.ones(7), "extra": torch.ones(1), "lm_head.weight": torch.ones(300, 64)},
    )
    edit_config("b", model_type="mistral")
    found = problems(plan_of, LINEAR + "chat_template: nobody\nmissing: error\n")
    for part in (UP, "shape [7]", "extra", "300 rows", "'mistral'", "'nobody' is no template"):
        assert sum(part in text for text in found) == 1, (part, found)


def test_every_model_that_cannot_be_opened(family, plan_of):
    with open("a/model.safetensors", "r+b") as file:
        file.truncate(1000)
    text = LINEAR.replace("{model: b}", "{model: ./nowhere}")
    found = problems(plan_of, text)
    assert len(found) == 2
    assert "model a: " in found[0] and "the file is corrupt or incomplete" in found[0]
    assert "./nowhere: neither an existing folder nor a hub id" in found[1]
