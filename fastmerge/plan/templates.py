"""Chat templates of the output: by name, from a file, as Jinja text, or the one that most models have."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence

from ..checkpoint import read_json
from ..checkpoint.opening import read_text
from ..errors import CheckpointError
from ..recipe.types import Recipe
from .findings import Findings
from .models import OpenModel
from .types import CopiedFile, TextFile

# Written from the public descriptions of the formats. Newlines stand in expressions, where trimming leaves them.
TEMPLATES = {
    "alpaca": (
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}{% elif message['role'] == 'assistant' %}"
        "{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}{% else %}"
        "{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
        "'<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "exaone": (
        "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
        "{{ '[|system|][|endofturn|]\\n' }}{% endif %}{{ '[|' + message['role'] + '|]' + message['content'] }}"
        "{{ '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + "
        "'<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% set told = namespace(system='') %}{% for message in messages %}"
        "{% if message['role'] == 'system' %}{% set told.system = message['content'] + '\\n\\n' %}"
        "{% elif message['role'] == 'user' %}{{ '[INST] ' + told.system + message['content'] + ' [/INST]' }}"
        "{% set told.system = '' %}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
}
"""Chat templates by name."""

# A tag that transformers adds to Jinja.
_GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


def set_chat_template(
    recipe: Recipe,
    tokenizer: OpenModel,
    models: Sequence[OpenModel],
    files: dict[str, TextFile | CopiedFile],
    findings: Findings,
) -> None:
    """Give the output the chat template that the recipe asks for, in place of the tokenizer's own."""
    if recipe.chat_template is None:
        return
    text = _chosen(recipe, models, findings)
    if text is None:
        return
    try:
        own = files.get("tokenizer_config.json")
        if isinstance(own, TextFile):
            config = json.loads(own.text)
        else:
            path = os.path.join(tokenizer.checkpoint.folder, "tokenizer_config.json")
            config = read_json(path, missing_ok=True) or {}
    except CheckpointError as error:
        findings.problem(recipe.where("chat_template"), str(error))
        return
    # transformers 5 reads the file, and before it the older ones the key.
    content = json.dumps({**config, "chat_template": text}, indent=2, ensure_ascii=False) + "\n"
    for name in [name for name in files if name.startswith("chat_template.")]:
        del files[name]
    files["tokenizer_config.json"] = TextFile(content)
    files["chat_template.jinja"] = TextFile(text)


def _chosen(recipe: Recipe, models: Sequence[OpenModel], findings: Findings) -> str | None:
    """Return the text of the template; None after a report."""
    wanted = recipe.chat_template or ""
    if wanted == "auto":
        counts = Counter(t for model in models if (t := own_template(model.checkpoint.folder)))
        if counts:
            return counts.most_common(1)[0][0]
        findings.note(f"{recipe.where('chat_template')}: auto finds no template in any model")
        return None
    where, text = recipe.where("chat_template"), wanted
    if wanted in TEMPLATES:
        return TEMPLATES[wanted]
    if "{" not in wanted:
        beside = os.path.join(os.path.dirname(recipe.path), os.path.expanduser(wanted))
        path = next((path for path in (beside, os.path.expanduser(wanted)) if os.path.isfile(path)), None)
        if path is None:
            remedy = f"write auto, one of {', '.join(TEMPLATES)}, the path of a Jinja file, or the Jinja text itself"
            findings.problem(where, f"{wanted!r} is no template that is known here, and no file", remedy)
            return None
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            findings.problem(where, f"{path}: cannot be read: {error}", "give the path of a Jinja file")
            return None
        where = f"{where}: {path}"
    if fault := _fault(text):
        findings.problem(where, f"is not valid Jinja: {fault}", "correct the template")
        return None
    return text


def _fault(text: str) -> str | None:
    """Return what is wrong with Jinja text, or None."""
    import jinja2

    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION.sub("", text))
    except jinja2.TemplateSyntaxError as error:
        return f"{error.message} (line {error.lineno})"
    return None


def own_template(folder: str) -> str | None:
    """Return the chat template of a model, from its own file or its tokenizer's configuration."""
    path = os.path.join(folder, "chat_template.jinja")
    if os.path.exists(path):
        try:
            return read_text(path)
        except CheckpointError:
            raise
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
    config = read_json(os.path.join(folder, "tokenizer_config.json"), missing_ok=True) or {}
    template = config.get("chat_template")
    if isinstance(template, list):
        # Several templates by name, of which one is taken without a word.
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
