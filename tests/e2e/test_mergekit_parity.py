"""Every recipe from the wild that mergekit merges, merged by both: names, shapes, dtypes, configs and values.

Each recipe is merged twice. As it is written, names, shapes, dtypes and configs are compared. In float32, where both
tools compute alike, values are compared: mergekit's own rounding to bfloat16 after every operation would hide more
than it shows. Random masks differ between the tools, so there random methods keep everything.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from mergekit_peer import merge_all, mergekit_python
from safetensors.torch import load_file

import fastmerge

pytestmark = [
    pytest.mark.slow,
    # The program that makes models leaves closing its files to the interpreter.
    pytest.mark.filterwarnings("ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

RECIPES = Path(__file__).resolve().parents[3] / "shared" / "recipes"
FILES = [f"{kind}/{file.stem}" for kind in ("main", "synthetic") for file in sorted((RECIPES / kind).glob("*.yml"))]
SMALL = ["--hidden", "16", "--inter", "32", "--heads", "2", "--kv-heads", "1", "--vocab", "64"]

# mergekit merges them, and a human must look at them first.
MISSPELT = {"main/088_sce": "dype", "main/136_ties": "nomalize"}
REFUSED = MISSPELT | {
    # An embedding of 65 rows from one model and a head of 64 from another, which no loader takes.
    "synthetic/005_multi_three_methods": r"lm_head.weight: shape \[64, 16\].*tokenizer_source: base or union",
}
# mergekit refuses: two documents without a name, a model that is listed four times.
ONLY_HERE = {"main/063_multi", "main/120_task_arithmetic"}
# mergekit writes float32 whatever the recipe says.
WIDER_THERE = ("arcee_fusion", "ramplus_tl")
# transformers, which mergekit saves configs with, writes them in its own way.
CONFIG_OF_TRANSFORMERS = {
    "architectures", "dtype", "torch_dtype", "rope_theta", "rope_scaling", "rope_parameters", "transformers_version",
    "pretraining_tp", "pad_token_id", "tie_word_embeddings",
}  # fmt: skip


@dataclass(frozen=True)
class Merged:
    """One recipe, the folders of both results, and what mergekit said."""

    recipe: Path
    theirs: Path
    error: str | None


@pytest.fixture(scope="module")
def make_models(shared):
    """The program that writes tiny models for a recipe, as a function of its arguments."""
    spec = importlib.util.spec_from_file_location("make_models", shared / "tools" / "make_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def make(*arguments):
        before, sys.argv = sys.argv, ["make_models", *map(str, arguments)]
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                module.main()
        finally:
            sys.argv = before

    return make


@pytest.fixture(scope="module")
def merged(make_models, tmp_path_factory) -> dict[tuple[str, str], Merged]:
    """Every recipe merged by mergekit, as it is written and in float32."""
    mergekit_python()
    folder = tmp_path_factory.mktemp("parity")
    pairs = {}
    for name in FILES:
        for variant, options in (("written", []), ("float32", ["--dtype", "float32", "--same-vocab"])):
            place = folder / variant / name.replace("/", "_")
            make_models(RECIPES / f"{name}.yml", place, *SMALL, *options)
            recipe = place / "recipe.yml"
            text = recipe.read_text().replace('tokenizer_source: "model:', 'tokenizer_source: "')
            recipe.write_text(in_float32(text) if variant == "float32" else text)
            pairs[f"{variant} {name}"] = (recipe, place / "theirs")
    errors = merge_all(pairs)
    return {(*key.split(" "),): Merged(*pair, errors[key]) for key, pair in pairs.items()}


def in_float32(text: str) -> str:
    """Return a recipe without dtypes, and with nothing left to chance or to single tokens."""
    text = re.sub(r"^(out_)?dtype: .*$", "", text, flags=re.MULTILINE)
    if re.search(r"merge_method: (dare|della)", text):
        text = re.sub(r"density: (\[.*?\]|[\d.]+)", "density: 1", text)
    return re.sub(r"^  (tokens|pad_to_multiple_of):.*(\n    .*|\n)*", "", text, flags=re.MULTILINE)


def ours(case: Merged) -> Path:
    out = case.recipe.parent / "ours"
    if not out.exists():
        fastmerge.merge(case.recipe, out)
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


@pytest.mark.parametrize("name", FILES)
def test_names_shapes_dtypes_and_configs(name, merged):
    case = merged["written", name]
    if name in REFUSED:
        with pytest.raises(fastmerge.InvalidInput, match=REFUSED[name]):
            ours(case)
        assert case.error is None
        return
    if name in ONLY_HERE:
        assert case.error
        return
    assert case.error is None
    found, wanted = weights(ours(case)), weights(case.theirs)
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in wanted.items()}
    if not name.endswith(WIDER_THERE):
        assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in wanted.items()}
    configs = [json.loads((folder / "config.json").read_text()) for folder in (ours(case), case.theirs)]
    one, other = ({k: v for k, v in config.items() if k not in CONFIG_OF_TRANSFORMERS} for config in configs)
    assert one == other
    assert configs[0].get("tie_word_embeddings", False) == configs[1].get("tie_word_embeddings", False)
    written = [(ours(case) / "mergekit_config.yml").read_text(), case.recipe.read_text()]
    one, other = ([document for document in yaml.safe_load_all(text) if document] for text in written)
    assert one == other


@pytest.mark.parametrize("name", [name for name in FILES if name not in (MISSPELT.keys() | ONLY_HERE)])
def test_values(name, merged):
    case = merged["float32", name]
    assert case.error is None
    found, wanted = weights(ours(case)), weights(case.theirs)
    assert found.keys() == wanted.keys()
    outside = total = 0
    for tensor_name, tensor in wanted.items():
        difference = (found[tensor_name].double() - tensor.double()).abs()
        # Ten units in the last place of the largest element.
        outside += int((difference > 10 * 2**-24 * tensor.abs().max()).sum())
        total += tensor.numel()
    # A quantile of float32 importances, which one of the tools rounds up and the other down, may take in one more.
    assert outside <= (total / 1000 if "arcee_fusion" in name else 0), f"{outside} of {total} elements differ"
