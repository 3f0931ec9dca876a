"""What people type for mergekit: its options, and the names of its commands."""

from __future__ import annotations

import json
import re

import pytest
import torch
from commands import call, write_recipe
from mergekit_peer import help_of
from safetensors.torch import load_file, save_file

from fastmerge.cli import main
from fastmerge.cli.others import ANSWERS

# Of mergekit-yaml 0.1.5; a test below compares them with its --help.
OPTIONS = (
    "--allow-crimes", "--no-allow-crimes", "--unsafe-truncate-embeddings", "--no-unsafe-truncate-embeddings",
    "--trust-remote-code", "--no-trust-remote-code", "--transformers-cache", "--lora-merge-cache", "--lora-merge-dtype",
    "--random-seed", "-v", "--quiet", "--no-quiet", "--cuda", "--no-cuda", "--device", "--low-cpu-memory",
    "--no-low-cpu-memory", "--lazy-unpickle", "--no-lazy-unpickle", "--read-to-gpu", "--no-read-to-gpu", "--multi-gpu",
    "--no-multi-gpu", "-j", "--num-threads", "--gpu-rich", "--async-write", "--no-async-write", "--write-threads",
    "--out-shard-size", "--copy-tokenizer", "--no-copy-tokenizer", "--clone-tensors", "--no-clone-tensors",
    "--write-model-card", "--no-write-model-card", "--safe-serialization", "--no-safe-serialization",
)  # fmt: skip
SCRIPTS = ("yaml", "multi", "pytorch", "moe", "extract-lora", "layershuffle", "tokensurgeon", "evolve", "legacy")


def test_every_option_is_accepted():
    command = main.commands["merge"]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert set(OPTIONS) <= known


def test_the_list_of_options_is_mergekits_own():
    listed = re.findall(r"(?<![\w-])(-[a-z]|--[a-z][a-z-]+[a-z])(?=[ ,/\n])", _declarations(help_of("run_yaml")))
    assert set(listed) - {"--help"} == set(OPTIONS)


def test_every_option_of_mergekit_moe_is_accepted():
    listed = re.findall(r"(?<![\w-])(-[a-z]|--[a-z0-9][a-z0-9-]+[a-z])(?=[ ,/\n])", _declarations(help_of("moe")))
    known = {n for parameter in main.commands["moe"].params for n in (*parameter.opts, *parameter.secondary_opts)}
    assert set(listed) - {"--help"} <= known
    assert "--load-in-4bit" in listed


def _declarations(text: str) -> str:
    """Return the first columns of a help text: what declares options, not what explains them."""
    lines = [re.split(r"(?<=\S) {2,}", line.strip())[0] for line in text.splitlines() if line.strip().startswith("-")]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--read-to-gpu"], "--read-to-gpu means nothing here: --device says"),
        (["--no-lazy-unpickle"], "--no-lazy-unpickle means nothing here: every input"),
        (["--write-threads", 3], "--write-threads means nothing here: --threads sets"),
        (["--lora-merge-dtype", "float16"], "--lora-merge-dtype means nothing here: adapters are folded in float32"),
        (["--no-safe-serialization"], "--no-safe-serialization means nothing here: the output is always safetensors"),
        (["-v", "-v"], "-v means nothing here"),
        (["--safe-serialization", "--no-trust-remote-code", "--lazy-unpickle", "--clone-tensors", "--no-quiet"], None),
        (["--copy-tokenizer", "--write-model-card", "--no-allow-crimes", "--no-multi-gpu"], None),
    ],
)
def test_options_that_mean_nothing_are_noted_as_they_were_written(ties, option, said):
    result = call("check", ties, *option)
    assert result.exit_code == 0
    notes = [line.removeprefix("note: ") for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert [note.startswith(str(said)) for note in notes] == ([True] if said else [])
    if said:
        strict = call("check", ties, *option, "--strict")
        assert strict.exit_code == 2 and said in strict.stderr


def test_tokenizer_and_card_are_left_out_when_asked(ties, tmp_path):
    for name, options in {"all": [], "none": ["--no-copy-tokenizer", "--no-write-model-card"]}.items():
        assert call("merge", ties, tmp_path / name, "--quiet", *options).exit_code == 0
    files = {name: {path.name for path in (tmp_path / name).iterdir()} for name in ("all", "none")}
    assert files["all"] - files["none"] == {"README.md", "tokenizer_config.json"}
    assert (tmp_path / "none" / "mergekit_config.yml").read_text() == ties.read_text()


def test_truncation(models, tmp_path):
    folder = tmp_path / "wide"
    folder.mkdir()
    tensors = {n: t for path in (models / "one").glob("*.safetensors") for n, t in load_file(path).items()}
    wide = {
        n: torch.cat([t, t[:3]]) if n in ("model.embed_tokens.weight", "lm_head.weight") else t
        for n, t in tensors.items()
    }
    save_file(wide, folder / "model.safetensors")
    config = json.loads((models / "one" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 3}))
    recipe = write_recipe(tmp_path / "r.yml", models)
    recipe.write_text(recipe.read_text().replace(str(models / "one"), str(folder)))
    assert "the vocabulary has" in call("merge", recipe, tmp_path / "out").stderr
    assert call("merge", recipe, tmp_path / "out", "--unsafe-truncate-embeddings", "--quiet").exit_code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == config["vocab_size"]
    assert call("verify", tmp_path / "out").exit_code == 0


def test_a_recipe_from_standard_input(ties, tmp_path):
    from click.testing import CliRunner

    text = ties.read_text()
    result = CliRunner().invoke(main, ["check", "-", "--json"], input=text, catch_exceptions=False)
    assert json.loads(result.stdout)["ok"] is True
    broken = CliRunner().invoke(main, ["check", "-"], input=text + "dype: x", catch_exceptions=False)
    assert broken.exit_code == 2 and "dype: unknown key" in broken.stderr


@pytest.mark.parametrize("name", ANSWERS)
def test_the_names_of_mergekits_commands_are_answered(name):
    result = call(name, "some.yml", "--any-option", "-x", "out")
    assert result.exit_code == 2
    assert result.stderr == f"error: {name}: {ANSWERS[name]}\n"


def test_every_command_of_mergekit_has_one_or_an_answer():
    assert {name for name in SCRIPTS if name not in main.commands} == set()


def test_schema():
    loose, strict = call_json_of("schema"), call_json_of("schema", "--strict")
    assert loose["title"] == "fastmerge recipe" and loose["additionalProperties"] is True
    assert strict["additionalProperties"] is False


def call_json_of(*arguments):
    return json.loads(call(*arguments).stdout)
