"""Heads and ties, adapters, and the small files of an output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from checkpoint_files import read_entry, write_adapter
from tiny_models import make_tensors, save_model

from fastmerge.errors import InvalidInput
from fastmerge.plan.types import CopiedFile, TextFile

LINEAR = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"


def config_of(plan):
    return json.loads(plan.files["config.json"].text)


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """A function that saves models ``a`` and ``b`` in the current folder: which are tied, and their configs."""
    monkeypatch.chdir(tmp_path)

    def save(tied_a, tied_b, **configs):
        for name, tied in (("a", tied_a), ("b", tied_b)):
            save_model(name, make_tensors(tied=tied), **configs.get(name, {}))

    return save


def test_both_tied(pair, plan_of):
    pair(True, True)
    plan = plan_of(LINEAR)
    assert "lm_head.weight" not in {output.name for output in plan.outputs}
    assert config_of(plan)["tie_word_embeddings"] is True


@pytest.mark.parametrize("tied", ["a", "b"])
def test_a_tied_model_takes_part_with_its_embedding(pair, plan_of, tied):
    pair(tied == "a", tied == "b")
    plan = plan_of(LINEAR)
    (head,) = (output for output in plan.outputs if output.name == "lm_head.weight")
    names = {"lm_head.weight": "ab".replace(tied, ""), "model.embed_tokens.weight": tied}
    assert {tensor.name: "ab"[tensor.model] for tensor in head.inputs.every} == names
    assert config_of(plan)["tie_word_embeddings"] is False


@pytest.mark.parametrize("tied", ["a", "b"])
def test_heads_of_stacked_models(pair, plan_of, tied):
    pair(tied == "a", tied == "b")
    ranges = "".join(f"  - sources: [{{model: {name}, layer_range: [0, 2]}}]\n" for name in "ab")
    plan = plan_of(f"merge_method: passthrough\nslices:\n{ranges}")
    inputs = {output.name: output.inputs.tensors[0] for output in plan.outputs}
    embedding, head = inputs["model.embed_tokens.weight"], inputs["lm_head.weight"]
    assert ("ab"[embedding.model], "ab"[head.model]) == ("a", "b")
    assert head.name == ("model.embed_tokens.weight" if tied == "b" else "lm_head.weight")
    assert config_of(plan)["tie_word_embeddings"] is False


def test_adapters(family, plan_of):
    written = write_adapter("lora", {"model.layers.2.mlp.up_proj": (160, 64)}, rank=4, lora_alpha=2)
    plan = plan_of(LINEAR.replace("{model: b}", "{model: a+lora}"))
    assert [model.reference for model in plan.models] == ["a", "a+lora"]
    assert plan.models[1].files[-1].path.endswith("lora/adapter_model.safetensors")
    for output in plan.outputs:
        plain, tuned = output.inputs.tensors
        assert plain.adapters == ()
        if output.name != "model.layers.2.mlp.up_proj.weight":
            assert tuned.adapters == ()
            continue
        (adapter,) = tuned.adapters
        assert adapter.scale == 0.5
        assert torch.equal(
            read_entry(adapter.parts[0]), written["base_model.model.model.layers.2.mlp.up_proj.lora_B.weight"]
        )
        assert torch.equal(
            read_entry(adapter.parts[1]), written["base_model.model.model.layers.2.mlp.up_proj.lora_A.weight"]
        )
    passed = plan_of("merge_method: passthrough\nmodels: [{model: a+lora}]")
    assert {o.method for o in passed.outputs if o.inputs.tensors[0].adapters} == {"passthrough"}
    assert {o.method for o in passed.outputs if not o.inputs.tensors[0].adapters} == {"copy"}
    assert passed.digest != plan_of("merge_method: passthrough\nmodels: [{model: a}]").digest


def test_configs_come_from_the_base_or_the_first_model(family, plan_of):
    for name in ("base", "a"):
        save_model(name, make_tensors(layers=4), mark=name, _name_or_path="/home/someone")
    based = config_of(
        plan_of("merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: a, parameters: {weight: 1}}]")
    )
    assert based["mark"] == "base" and "_name_or_path" not in based
    assert config_of(plan_of(LINEAR))["mark"] == "a"


def test_dtype_key_of_new_configs(family, plan_of):
    path = Path("a/config.json")
    config = json.loads(path.read_text())
    del config["torch_dtype"]
    path.write_text(json.dumps(config | {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}}))
    written = config_of(plan_of(LINEAR + "dtype: float32"))
    assert written["dtype"] == written["text_config"]["dtype"] == "float32" and "torch_dtype" not in written


@pytest.mark.parametrize(("dtype", "inner"), [("dtype: float16\n", "float16"), ("", "float32")])
def test_dtype_of_towers(family, plan_of, dtype, inner):
    for name in "ab":
        tensors = make_tensors(layers=4) | {"vision.norm.weight": torch.ones(4)}
        save_model(name, tensors, vision_config={"torch_dtype": "float32", "rope": {"theta": 1}})
    written = config_of(plan_of(LINEAR + dtype))
    assert written["torch_dtype"] == ("float16" if dtype else "bfloat16")
    assert written["vision_config"] == {"torch_dtype": inner, "rope": {"theta": 1}}


def test_side_files(family, plan_of, tmp_path):
    for name in (
        "tokenizer.model",
        "merges.txt",
        "preprocessor_config.json",
        "modeling_x.py",
        "optimizer.pt",
        "notes.md",
    ):
        for folder in "ab":
            (tmp_path / folder / name).write_text("YQ== 0\nYg== 1" if name == "tokenizer.model" else folder)
    plan = plan_of(LINEAR + "tokenizer_source: b")
    folders = {name: file.path.split("/")[-2] for name, file in plan.files.items() if isinstance(file, CopiedFile)}
    assert folders == {
        "tokenizer.model": "b", "merges.txt": "b", "tokenizer_config.json": "b",
        "preprocessor_config.json": "a", "modeling_x.py": "a", "generation_config.json": "a",
    }  # fmt: skip
    assert {name for name, file in plan.files.items() if isinstance(file, TextFile)} == {
        "config.json", "README.md", "mergekit_config.yml",
    }  # fmt: skip


def tokenizer(folder, tokens):
    text = json.dumps({"model": {"vocab": {token: i for i, token in enumerate(tokens)}}, "added_tokens": []})
    (folder / "tokenizer.json").write_text(text)


def test_tokenizer_source_merges_by_token(family, plan_of, tmp_path):
    tokenizer(tmp_path / "a", ["x", "y"])
    tokenizer(tmp_path / "b", ["x", "y", "only here"])
    assert plan_of(LINEAR + "tokenizer_source: a").outputs
    tokenizer(tmp_path / "b", ["x", "z"])
    assert plan_of(LINEAR + "tokenizer_source: a").gathered
    (tmp_path / "b" / "tokenizer.json").write_text('{"model": []}')
    with pytest.raises(InvalidInput, match="is not a tokenizer file"):
        plan_of(LINEAR + "tokenizer_source: a")


def test_model_card(family, plan_of, tmp_path):
    for name in "ab":
        (tmp_path / name / "README.md").write_text("---\nlicense: apache-2.0\n---\ntext")
    text = plan_of(LINEAR).files["README.md"].text
    _, front, body = text.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata == {"license": "apache-2.0", "library_name": "transformers", "tags": ["merge", "fastmerge"]}
    assert LINEAR.strip() in body and "`linear`" in body and "2203.05482" in body and "seed 0" in body
    (tmp_path / "b" / "README.md").write_text("---\nlicense: mit\n---\ntext")
    assert "license" not in plan_of(LINEAR).files["README.md"].text


def test_what_the_recipe_says_of_its_result(family, plan_of):
    about = "name: First\ndescription: A merge.\nlicense: mit\nlanguage: [en]\ntags: [blend, merge, {a: 1}]\n"
    text = plan_of(LINEAR + about).files["README.md"].text
    _, front, body = text.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert (metadata["license"], metadata["language"], metadata["tags"]) == (
        "mit",
        ["en"],
        ["merge", "fastmerge", "blend", "{'a': 1}"],
    )
    assert body.startswith("# First\n\nA merge.\n\nMade with fastmerge")


def test_what_is_not_wanted_is_left_out(family, plan_of):
    plan = plan_of(LINEAR + "chat_template: chatml\n", copy_tokenizer=False, model_card=False)
    assert set(plan.files) == {"config.json", "generation_config.json", "mergekit_config.yml"}
    assert any("chat_template: has no effect without a tokenizer" in note for note in plan.notes)
    assert plan.files["mergekit_config.yml"].text == plan.recipe


def test_truncated_embeddings(family, plan_of):
    wide = {
        name: torch.cat([family[name], torch.ones(3, 64)]) for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    save_model("b", family | wide, vocab_size=len(wide["lm_head.weight"]))
    with pytest.raises(InvalidInput, match="the vocabulary has"):
        plan_of(LINEAR)
    for text in (LINEAR, LINEAR.replace("{model: a}, {model: b}", "{model: b}, {model: a}")):
        plan = plan_of(text, truncate_embeddings=True)
        head = next(output for output in plan.outputs if output.name == "lm_head.weight")
        assert head.shape == family["lm_head.weight"].shape
        assert {tensor.shape for tensor in head.inputs.every} == {head.shape}
        assert config_of(plan)["vocab_size"] == len(family["lm_head.weight"]) and plan.truncated
        assert any("lm_head.weight: only the first" in note for note in plan.notes)


def test_strict_makes_problems_of_notes(family, plan_of):
    with pytest.raises(InvalidInput) as caught:
        plan_of(LINEAR + "smooth: true\n", strict=True)
    assert [str(problem) for problem in caught.value.problems] == [
        "<recipe>:4:1: smooth: is a key of mergekit-evolve; it has no effect"
    ]
