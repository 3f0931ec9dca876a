"""Wrong arguments of the functions of the package: each is named, with its value and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import save_family

import fastmerge
from fastmerge.arguments import several, size_of, whole

LINEAR = "merge_method: linear\nmodels: [{one}, {two}]\nparameters: {{weight: 1}}\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return save_family(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(
    ("function", "options", "said"),
    [
        ("merge", {"ram": 2.5}, "ram: 2.5 is not a size; give bytes as a whole number, or text such as '2.5GiB'"),
        ("merge", {"shard_size": None}, "shard_size: None is not a size"),
        ("merge", {"vram": "much"}, "vram: 'much' is not a size"),
        ("merge", {"threads": "a"}, "threads: is 'a', expected a whole number of at least 1"),
        ("merge", {"threads": 0, "device": None, "backend": 3}, "threads: is 0"),
        ("merge", {"threads": 0, "device": None, "backend": 3}, "device: None names no devices; expected auto"),
        ("merge", {"threads": 0, "device": None, "backend": 3}, "backend: is 3, expected one of auto, "),
        ("merge", {"progress": "yes"}, "progress: is 'yes', expected None, True, False or a function"),
        ("average", {"last": 0}, "last: is 0, expected a whole number of at least 1"),
        ("average", {"every": 1.5}, "every: is 1.5, expected a whole number"),
        ("analyze", {"beta": "x"}, "beta: is 'x'"),
        ("extract", {"rank": 2.5}, "rank: is 2.5, expected a whole number of at least 1"),
        ("extract", {"rank": None, "energy": "x"}, "energy: is 'x', expected a share"),
        ("verify", {"sample": -1}, "sample: is -1, expected a whole number of at least 0"),
    ],
)
def test_wrong_values_are_named(models, tmp_path, function, options, said):
    one, two, base, out = models / "one", models / "two", models / "base", tmp_path / "out"
    arguments = {
        "merge": (LINEAR.format(one=one, two=two), out),
        "average": ([one, two], out),
        "analyze": ([one], base, out),
        "extract": (base, one, out),
        "verify": (out,),
    }[function]
    with pytest.raises(fastmerge.InvalidInput) as caught:
        getattr(fastmerge, function)(*arguments, **options)
    assert said in str(caught.value) and not out.exists()


def test_one_name_is_no_list_of_letters(models, tmp_path):
    assert several("abc") == ["abc"] and several(Path("a")) == ["a"] and several(["a", Path("b")]) == ["a", "b"]
    report = fastmerge.extract(models / "base", models / "one", tmp_path / "adapter", rank=2, include="q_proj")
    assert report.matrices and all("q_proj" in found.name for found in report.matrices)
    assert fastmerge.merge_adapter_folders(tmp_path / "adapter", tmp_path / "same").modules == len(report.matrices)


def test_what_reads_as_a_whole_number():
    import numpy as np

    assert not [*whole("n", None), *whole("n", 1), *whole("n", np.int64(3)), *whole("n", 0, 0)]
    assert all([*whole("n", wrong)] for wrong in (True, 1.0, "1", 0, -1))
    assert size_of("ram", "2KiB") == 2048


def test_methods_are_shown_by_what_they_do():
    methods = fastmerge.list_methods()
    assert repr(methods["ties"]) == "<ties: trims deltas, elects signs, averages>"
    assert "default=REQUIRED" in repr(methods["ties"].parameters[0])
    with pytest.raises(KeyError, match=r"tiez \(did you mean ties\?\)"):
        methods["tiez"]


def test_a_difference_is_sorted_by_what_it_has(models):
    with pytest.raises(fastmerge.InvalidInput, match="by: is 'size', expected one of order, name"):
        fastmerge.diff(models / "one", models / "two").sorted("size")


def test_a_result_without_a_place_is_refused(models):
    with pytest.raises(fastmerge.FastmergeError, match="the result has no place"):
        fastmerge.merge(LINEAR.format(one=models / "one", two=models / "two"), None)  # type: ignore[arg-type]
