"""Help, lists and versions fit a terminal of 80 columns, and are whole."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from commands import call, call_json

import fastmerge
from fastmerge.cli import SECTIONS, _completion, main
from fastmerge.methods import BLOCKS, all_methods, get_method
from fastmerge.recipe import load
from fastmerge.recipe.example import example_recipe

MARKUP = ("``", "::\n", ":func:")


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def lines(*command: object) -> list[str]:
    result = call(*command)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_every_method_has_a_line(narrow):
    listed = lines("methods")
    assert all(len(line) <= 80 for line in listed)
    for name, method in all_methods().items():
        if type(method).__module__.startswith("fastmerge.methods"):
            assert 0 < len(method.summary) <= 42
        assert [line.split()[0] for line in listed].count(name) == 1


@pytest.mark.parametrize("name", [*all_methods(), *BLOCKS])
def test_pages_of_methods(name, narrow):
    page = lines("methods", name)
    assert all(len(line) <= 80 for line in page)
    assert not any(sign in "\n".join(page) for sign in MARKUP)
    assert page[0].startswith(f"{name}: ") and "example" in page


def test_examples_are_recipes():
    for method in all_methods().values():
        recipe = load(example_recipe(method))
        assert recipe.method == method.name and recipe.notes == ()
    for block in BLOCKS.values():
        assert load(example_recipe(get_method("ties"), block)).notes == ()


def test_help_is_whole(narrow):
    text = "\n".join(lines("--help"))
    assert "..." not in text.replace("[ARGS]...", "")
    shown = [name for section in SECTIONS.values() for name in section]
    assert sorted(shown) == sorted(name for name, command in main.commands.items() if not command.hidden)
    for name in shown:
        help_text = lines(name, "--help")
        assert all(len(line) <= 80 for line in help_text), name
        assert main.commands[name].get_short_help_str(1000).split()[0] in text
    assert lines() == lines("--help")


def test_options_stand_in_groups():
    text = "\n".join(lines("merge", "--help"))
    places = [
        text.index(title) for title in ("Input and output:", "--overwrite", "Running:", "--ram", "mergekit's names:")
    ]
    assert places == sorted(places)
    assert text.index("Running:") < text.index("--distributed") < text.index("--rank-timeout") < places[-1]
    checking, planning = "\n".join(lines("check", "--help")), "\n".join(lines("plan", "--help"))
    for absent in ("--ram", "--device", "--cuda", "--num-threads", "--out-shard-size", "--threads"):
        assert absent not in checking
    assert "--num-threads" not in planning and "--ram" in planning


@pytest.mark.parametrize(
    "command",
    [
        ("merge", "RECIPE", "out", "--private"),
        ("multi", "RECIPE", "out", "--out-path", "other"),
        ("plan", "RECIPE", "--files", "--explain", "norm"),
        ("average", "one", "two", "out", "--minimize"),
    ],
)
def test_options_that_would_be_dropped_are_refused(command, ties):
    result = call(*(ties if part == "RECIPE" else part for part in command))
    option = next(part for part in command if part.startswith("--"))
    assert result.exit_code == 2 and result.stderr.splitlines()[-1].startswith("Error: ") and option in result.stderr


def test_a_command_of_mergekit_can_be_checked(ties):
    result = call("check", ties, "--cuda", "--out-shard-size", "5B", "--num-threads", 2, "--allow-crimes")
    assert result.exit_code == 0 and result.stderr == ""


def test_versions():
    assert lines("--version") == [f"fastmerge {fastmerge.__version__}"]
    found = call_json("--version")
    assert found["fastmerge"] == fastmerge.__version__ and found["packages"]["numpy"]


@pytest.mark.parametrize(("shell", "part"), [("bash", "complete"), ("zsh", "#compdef"), ("fish", "complete")])
def test_completion_is_written_where_the_shell_looks(shell, part, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SHELL", f"/bin/{shell}")
    said = lines("--install-completion")[0]
    path = _completion._place(shell)
    assert path.is_relative_to(tmp_path) and said.startswith(f"{path} is written")
    assert part in path.read_text() and _completion.VARIABLE in path.read_text()
    refused = call("--install-completion", "csh")
    assert refused.exit_code == 2 and "name one: --install-completion bash|zsh|fish" in refused.stderr


def test_standard_input_is_a_recipe(ties, tmp_path):
    for command in (["check", "-"], ["plan", "-"], ["merge", "-", tmp_path / "out"]):
        result = CliRunner().invoke(main, [str(part) for part in command], input=ties.read_text())
        assert result.exit_code == 0, result.output
    result = CliRunner().invoke(main, ["check", "-"], input="merge_method: tise\nmodels: [a]")
    assert "standard input:1:1: merge_method: unknown merge method 'tise' (did you mean 'ties'?)\n" in result.stderr


def test_a_model_that_is_not_there_is_named_where_it_stands(ties, models, tmp_path):
    path = tmp_path / "wrong.yml"
    path.write_text(ties.read_text().replace(f"{models}/two", f"{models}/twoo"))
    [problem] = json.loads(call("check", path, "--json").stdout)["problems"]
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "twoo" in text)
    column = path.read_text().splitlines()[line - 1].index(str(models)) + 1
    assert problem["where"] == f"{path}:{line}:{column}: model {models}/twoo"
    assert problem["what"] == f"neither an existing folder nor a hub id like owner/name (did you mean {models}/two?)"


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--ram", "1kB", "memory budget"),
        ("--backend", "cuda", "'cuda' was asked for"),
        ("--device", "cuda", "--device cuda"),
    ],
)
def test_options_are_judged_before_the_output(option, value, said, ties, tmp_path):
    out = tmp_path / "out"
    assert call("merge", ties, out, "--quiet").exit_code == 0
    result = call("merge", ties, out, option, value)
    assert result.exit_code == 2 and said in result.stderr and "exists" not in result.stderr


def slips(word: str) -> set[str]:
    """What one slip of the keyboard makes of a word: a letter is missing, twice, another, or behind its neighbour."""
    found = set()
    for i, letter in enumerate(word):
        found |= {word[:i] + word[i + 1 :], word[:i] + letter + word[i:], f"{word[:i]}q{word[i + 1 :]}"}
        found.add(word[:i] + word[i + 1 : i + 2] + letter + word[i + 2 :])
    return found - {word}


def test_a_slip_of_the_keyboard_is_asked_about():
    """The command or option that was meant, never one that no help lists."""
    visible = [name for name, command in main.commands.items() if not command.hidden]
    for name in visible:
        for wrong in slips(name):
            assert f"No such command {wrong!r}. Did you mean {name!r}?" in call(wrong).output
    assert "Did you mean" not in call("elephant").output

    for command in ("average", "convert"):
        for wrong in slips("shard-size"):
            message = f"No such option '--{wrong}'. Did you mean '--shard-size'?"
            assert message in call(command, f"--{wrong}", "1", "--json").output
    assert "Did you mean '--help'?" in call("merge", "--hepl").output
    assert "Did you mean '--version'?" in call("--verison").output
    assert call("merge", "--elephant").output.rstrip().endswith("No such option '--elephant'.")
