"""The files that are copied beside the weights: what loaders need, and a note on what stays behind."""

from __future__ import annotations

import json

import pytest

from fastmerge.errors import InvalidInput
from fastmerge.plan.types import CopiedFile

LINEAR = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"
ALWAYS = {"generation_config.json", "tokenizer_config.json"}


def write(folder, *names, text="{}"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def copied(plan):
    return {name for name, file in plan.files.items() if isinstance(file, CopiedFile)} - ALWAYS


@pytest.mark.parametrize(
    "names",
    [
        ["tekken.json"],
        ["preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"],
        ["additional_chat_templates/tool_use.jinja", "chat_template.jinja", "chat_template.json"],
        ["config_sentence_transformers.json", "sentence_bert_config.json"],
        ["source.spm", "target.spm", "vocab-src.json"],
        ["sentencepiece.bpe.model", "tokenizer.model.v3", "qwen.tiktoken"],
        ["normalizer.json", "mel_filters.npz"],
    ],
)
def test_what_loaders_need(family, plan_of, tmp_path, names):
    write(tmp_path / "a", *names, text="")
    write(tmp_path / "a", *[name for name in names if name.endswith(".json")])
    plan = plan_of(LINEAR)
    assert copied(plan) == set(names)
    assert not any("not copied" in note for note in plan.notes)


def test_modules_of_sentence_transformers(family, plan_of, tmp_path):
    paths = ["", "1_Pooling", "2_Dense", "../b", "/etc", "."]
    write(tmp_path / "a", "modules.json", text=json.dumps([{"idx": i, "path": path} for i, path in enumerate(paths)]))
    write(tmp_path / "a", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "3_Other/x.json")
    plan = plan_of(LINEAR)
    assert copied(plan) == {
        "modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors",
    }  # fmt: skip
    assert plan.notes == (
        "modules behind the model are copied from a and not merged: 2_Dense/model.safetensors",
        "files of a that are not copied: 3_Other/",
    )


def test_what_stays_behind(family, plan_of, tmp_path):
    """Leftovers of training, other copies of the weights and documents are nobody's loss; the rest is named."""
    write(
        tmp_path / "a", "optimizer.pt", "rng_state_0.pth", "trainer_state.json", "training_args.bin", "LICENSE",
        "events.out.tfevents", "checkpoint-7/x.json", "onnx/model.onnx", "model.fp16.safetensors", "README.md",
        ".gitattributes", "plot.png", "zero_to_fp32.py", "params.json", "eval_results.json",
    )  # fmt: skip
    assert plan_of(LINEAR).notes == () and copied(plan_of(LINEAR)) == set()
    write(tmp_path / "a", "voices/a.wav", "hyperparams.yaml")
    assert plan_of(LINEAR).notes == ("files of a that are not copied: hyperparams.yaml, voices/",)


def test_code_of_the_model(family, plan_of, tmp_path):
    write(tmp_path / "a", "modeling_x.py", "configuration_x.py")
    plan = plan_of(LINEAR)
    assert copied(plan) == {"modeling_x.py", "configuration_x.py"}
    assert plan.notes == (
        "the output takes the code of a, which nothing here runs or checks: configuration_x.py, modeling_x.py",
    )


@pytest.mark.parametrize("name", ["tokenizer.model", "generation_config.json", "chat_template.jinja"])
def test_files_that_are_not_there(family, plan_of, tmp_path, name):
    path = tmp_path / "a" / name
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InvalidInput, match=f"a/{name}: is a pointer of Git LFS"):
        plan_of(LINEAR)
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(InvalidInput, match=f"a/{name}: is a link to nowhere, which does not exist"):
        plan_of(LINEAR)


def test_empty_files(family, plan_of, tmp_path):
    write(tmp_path / "a", "merges.txt", "__init__.py", text="")
    assert copied(plan_of(LINEAR)) == {"merges.txt", "__init__.py"}
    write(tmp_path / "a", "special_tokens_map.json", text="")
    with pytest.raises(InvalidInput, match=r"special_tokens_map.json: is empty"):
        plan_of(LINEAR)


def test_the_default_of_named_templates(family, plan_of, tmp_path):
    named = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": "{{ plain }}"}]
    for name in "ab":
        write(tmp_path / name, "tokenizer_config.json", text=json.dumps({"chat_template": named}))
    plan = plan_of(LINEAR + "chat_template: auto\n")
    assert json.loads(plan.files["tokenizer_config.json"].text)["chat_template"] == "{{ plain }}"
