"""Methods from outside: files and installed packages, in every place where the others are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import call, call_json
from tiny_models import save_family

import fastmerge
from fastmerge import functional
from fastmerge.errors import FastmergeError
from fastmerge.methods import _plugins, all_methods, get_method, load_plugin
from fastmerge.steps.method import HOMES, METHODS

OWN = '''
from fastmerge.methods import Group, Method, Parameter, method
from fastmerge.steps.apply import WeightedSum


@method
class Halves(Method):
    """theta = share * theta_0 + (1 - share) * theta_1   (an example)."""

    name = "halves"
    base = "ignored"
    inputs = (2, 2)
    parameters = (Parameter("share", float, 0.5, doc="part of the first model"),)
    paper = "none"

    def merge(self, group: Group):
        return WeightedSum([group["share"], 1 - group["share"]])
'''


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Forget what a test registers."""
    all_methods()
    before = dict(METHODS)
    monkeypatch.setattr(_plugins, "_LOADED", {})
    yield
    METHODS.clear()
    METHODS.update(before)


def written(folder: Path, text: str, name: str = "halves.py") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_file_is_a_method(tmp_path):
    file = written(tmp_path, OWN)
    assert fastmerge.load_plugin(file) == ("halves",) == fastmerge.load_plugin(str(file))
    assert "halves" in all_methods() and get_method("halves").inputs == (2, 2)
    a, b = torch.ones(3), torch.zeros(3)
    assert torch.equal(functional.halves([a, b], share=0.25), 0.25 * a)


@pytest.mark.parametrize("name", ["slerp", "ties", "consensus"])
def test_the_file_of_a_method_runs_outside(name, tmp_path):
    file = Path(functional.__file__).parent / "methods" / f"{name}.py"
    outside = written(tmp_path, file.read_text().replace(f'name = "{name}"', 'name = "outside"'), f"{name}.py")
    assert load_plugin(outside) == ("outside",)
    values = {"slerp": {"t": 0.3}, "ties": {"weight": 1, "density": 0.5}, "consensus": {"threshold": 1}}[name]
    base, tensor = torch.randn(50), torch.randn(50)
    merged = functional.merge_tensors(base, tensor, method="outside", **values)
    assert torch.equal(merged, functional.merge_tensors(base, tensor, method=name, **values))


def test_two_files_of_one_name(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        load_plugin(written(tmp_path / folder, OWN.replace("halves", folder)))
    assert {"a", "b"} <= set(all_methods())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "registers no method; decorate a class with fastmerge.methods.method"),
        ("import nothing_like_it\n", "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("def broken(:\n", "SyntaxError"),
        (OWN.replace('"halves"', '"linear"'), "two merge methods are called 'linear'"),
        (OWN + "\n1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_a_file_that_cannot_be_used(text, message, tmp_path):
    before = dict(METHODS)
    with pytest.raises(FastmergeError, match=r"halves\.py: cannot be used as a plugin") as caught:
        load_plugin(written(tmp_path, text))
    assert message in str(caught.value) and before == METHODS
    with pytest.raises(FastmergeError, match="is no file; expected a Python file"):
        load_plugin(tmp_path / "absent.py")


def installed(folder: Path, target: str) -> Path:
    """Write a package that declares ``target`` as a merge method."""
    info = folder / "own_merges-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "own_merges.py").write_text(OWN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-merges\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[fastmerge.methods]\nhalves = {target}\n")
    return folder


def test_installed_packages_bring_methods(tmp_path, monkeypatch):
    with monkeypatch.context() as context:
        context.syspath_prepend(installed(tmp_path / "good", "own_merges"))
        _plugins.load_installed()
        assert "halves" in all_methods()
    monkeypatch.syspath_prepend(installed(tmp_path / "bad", "own_merges:Absent"))
    with pytest.raises(FastmergeError, match=r"own-merges: its merge method halves .* cannot be loaded.* uninstall it"):
        _plugins.load_installed()


def test_commands_take_plugins(tmp_path):
    models = save_family(tmp_path / "models")
    file, out = written(tmp_path, OWN), tmp_path / "out"
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(f"merge_method: halves\nmodels: [{{model: {models}/one}}, {{model: {models}/two}}]\n")
    assert "unknown merge method 'halves'" in call("check", recipe).stderr
    assert call("merge", recipe, out, "--plugin", file, "--quiet").exit_code == 0
    assert call("verify", out, "--plugin", file).exit_code == 0
    (described,) = call_json("methods", "halves", "--plugin", file)
    assert described["doc"].startswith("theta = share")
    assert call("plan", recipe, "--plugin", file).exit_code == 0
    failed = call("check", recipe, "--plugin", written(tmp_path, "1 / 0\n", "bad.py"), "--json")
    assert failed.exit_code == 2 and "bad.py: cannot be used as a plugin: ZeroDivisionError" in failed.stdout


def test_every_file_is_the_method_of_its_name():
    assert {name: type(get_method(name)).__module__ for name in HOMES} == HOMES
    assert set(all_methods()) == set(HOMES) == METHODS.keys()
