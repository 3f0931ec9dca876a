"""Chat templates of the output."""

from __future__ import annotations

import json

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fastmerge.errors import InvalidInput
from fastmerge.plan.templates import TEMPLATES

LINEAR = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"
CHAT = [("system", "S"), ("user", "U1"), ("assistant", "A1"), ("user", "U2")]

# From the public descriptions of the formats.
EXPECTED = {
    "alpaca": "S\n\n### Instruction:\nU1\n\n### Response:\nA1</s>\n\n### Instruction:\nU2\n\n### Response:\n",
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
    "<|im_start|>user\nU2<|im_end|>\n<|im_start|>assistant\n",
    "exaone": "[|system|]S[|endofturn|]\n[|user|]U1\n[|assistant|]A1[|endofturn|]\n[|user|]U2\n[|assistant|]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    "U1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nU2<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] S\n\nU1 [/INST] A1</s>[INST] U2 [/INST]",
}


def template_of(plan):
    return json.loads(plan.files["tokenizer_config.json"].text)["chat_template"]


def test_chat_templates(family, plan_of, tmp_path):
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ from_a }}")
    for name in ("b", "c"):
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ common }}"}))
    three = LINEAR.replace("{model: b}", "{model: b}, {model: c}")
    assert "chat_template.jinja" in plan_of(three).files
    plan = plan_of(three + "chat_template: auto")
    assert template_of(plan) == plan.files["chat_template.jinja"].text == "{{ common }}"
    assert template_of(plan_of(LINEAR + "chat_template: '{{ mine }}'")) == "{{ mine }}"
    assert "<|im_start|>" in template_of(plan_of(LINEAR + "chat_template: chatml"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_named_templates_render(family, plan_of, name):
    text = template_of(plan_of(LINEAR + f"chat_template: {name}"))
    # As transformers sets it up.
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(text)
    messages = [{"role": role, "content": content} for role, content in CHAT]
    rendered = template.render(messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
    assert rendered == EXPECTED[name]


def test_a_template_from_a_file(family, plan_of, tmp_path):
    (tmp_path / "mine.jinja").write_text("{% generation %}{{ mine }}{% endgeneration %}")
    assert template_of(plan_of(LINEAR + "chat_template: mine.jinja")).startswith("{% generation %}{{ mine }}")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("nobody", "'nobody' is no template that is known here, and no file"),
        ("'{% if x %}'", r"is not valid Jinja: .* \(line 1\)"),
        ("broken.jinja", r"chat_template: .*broken.jinja: is not valid Jinja"),
    ],
)
def test_what_is_no_template(family, plan_of, tmp_path, template, message):
    (tmp_path / "broken.jinja").write_text("{{ x ")
    with pytest.raises(InvalidInput, match=message):
        plan_of(LINEAR + f"chat_template: {template}")
