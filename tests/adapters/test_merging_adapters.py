"""Adapters merged into an adapter: PEFT's add_weighted_adapter is the oracle, and float64 is that of svd."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import fastmerge
from fastmerge.adapters.combining import COMBINATIONS
from fastmerge.cli.merge_adapters import TYPES
from fastmerge.errors import BudgetError, FastmergeError, InvalidInput, OutputError

peft = pytest.importorskip("peft", reason="needs PEFT: pip install peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 64, "tie_word_embeddings": False}  # fmt: skip
WEIGHTS = [0.7, -0.4, 1.3]


def base_model():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))


def make(tmp_path, *options, **shared):
    """Save an adapter for each of ``options``, with random factors; return their folders."""
    folders = []
    for i, own in enumerate(options):
        settings = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "up_proj"], "init_lora_weights": False}
        tuned = peft.get_peft_model(base_model(), peft.LoraConfig(**settings | shared | own))
        torch.manual_seed(i + 1)
        with torch.no_grad():
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter.normal_()
        folders.append(str(tmp_path / f"adapter-{i}"))
        tuned.save_pretrained(folders[-1])
    return folders


def theirs(folders, weights, kind, **options):
    """Return the factors that PEFT merges, by module: lora_B, lora_A and the scale under which PEFT uses them."""
    model = peft.PeftModel.from_pretrained(base_model(), folders[0], adapter_name="a0")
    for i, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, adapter_name=f"a{i}")
    names = [f"a{i}" for i in range(len(folders))]
    model.add_weighted_adapter(names, weights, adapter_name="merged", combination_type=kind, **options)
    found = {}
    for name, module in model.base_model.model.named_modules():
        if "merged" in getattr(module, "lora_A", {}):
            found[name] = (module.lora_B["merged"].weight.data, module.lora_A["merged"].weight.data)
        elif "merged" in getattr(module, "lora_embedding_A", {}):
            found[name] = (module.lora_embedding_B["merged"].data, module.lora_embedding_A["merged"].data)
    return found


def ours(folder):
    """Return the factors of a folder, by module, as PEFT loads them, and check that it gives them scale 1."""
    model = peft.PeftModel.from_pretrained(base_model(), folder)
    stored = load_file(f"{folder}/adapter_model.safetensors")
    found = {}
    for name, module in model.base_model.model.named_modules():
        if "default" in getattr(module, "lora_A", {}):
            found[name] = (module.lora_B["default"].weight.data, module.lora_A["default"].weight.data)
        elif "default" in getattr(module, "lora_embedding_A", {}):
            found[name] = (module.lora_embedding_B["default"].data, module.lora_embedding_A["default"].data)
        if name in found:
            assert module.scaling["default"] == 1.0
    assert 2 * len(found) == sum("lora_" in name for name in stored)
    for name, (up, _) in found.items():
        keys = [key for key in stored if key.startswith(f"base_model.model.{name}.lora_") and "B" in key]
        assert torch.equal(stored[keys[0]].float(), up)
    return found


def exact(folders, weights):
    """Return the sums of the deltas, float64, by module."""
    sums = {}
    for folder, weight in zip(folders, weights, strict=True):
        model = peft.PeftModel.from_pretrained(base_model(), folder)
        for name, module in model.base_model.model.named_modules():
            if "default" in getattr(module, "lora_A", {}):
                up, down = module.lora_B["default"].weight.double(), module.lora_A["default"].weight.double()
                delta = weight * module.scaling["default"] * up @ down
                sums[name] = sums.get(name, 0) + delta.detach()
    return sums


PATTERNS = {"rank_pattern": {"layers.0.*q_proj": 2}, "alpha_pattern": {"up_proj": 9}}


@pytest.mark.parametrize("method", ["total", "frequency"])
@pytest.mark.parametrize("kind", ["linear", "ties", "magnitude_prune"])
def test_factors_are_peft_s(tmp_path, kind, method):
    """To the bit: PEFT's arithmetic on lora_A and lora_B by themselves."""
    folders = make(tmp_path, {}, {"lora_alpha": 2}, {"lora_alpha": 9}, use_rslora=True, **PATTERNS)
    options = {} if kind == "linear" else {"density": 0.4}
    signs = {"majority_sign_method": method} if kind == "ties" else {}
    fastmerge.merge_adapter_folders(folders, tmp_path / "out", combination=kind, weights=WEIGHTS, **options, **signs)
    merged, expected = ours(tmp_path / "out"), theirs(folders, WEIGHTS, kind, **options, **signs)
    assert merged.keys() == expected.keys() and len(merged) == 4
    for name, factors in expected.items():
        assert all(torch.equal(a, b) for a, b in zip(merged[name], factors, strict=True)), name


def test_cat_keeps_the_sum(tmp_path):
    """Ranks differ from module to module, and some adapters lack some modules."""
    folders = make(tmp_path, {}, {"r": 2}, {"target_modules": ["q_proj", "embed_tokens"]}, **PATTERNS)
    report = fastmerge.merge_adapter_folders(folders, tmp_path / "out", combination="cat", weights=WEIGHTS)
    assert report.error is None and report.modules == 5 and report.ranks == (3, 8)
    merged, expected = ours(tmp_path / "out"), theirs(folders, WEIGHTS, "cat")
    for name, (up, down) in expected.items():
        rank = merged[name][0].shape[1]
        assert torch.equal(merged[name][0], up[:, :rank]) and torch.equal(merged[name][1], down[:rank]), name
        assert not up[:, rank:].any() and not down[rank:].any()


@pytest.mark.parametrize("rank", [None, 2, 20])
def test_svd(tmp_path, rank):
    """The best approximation of its rank of the float64 sum, up to the rounding of the factors to float32."""
    folders = make(tmp_path, {"lora_alpha": 7}, {"r": 2}, {"r": 4, "use_rslora": True})
    report = fastmerge.merge_adapter_folders(folders, tmp_path / "out", combination="svd", weights=WEIGHTS, rank=rank)
    assert report.ranks == (rank or 4,) * 2
    merged, expected, sums = (
        ours(tmp_path / "out"),
        theirs(folders, WEIGHTS, "svd", svd_rank=rank),
        exact(folders, WEIGHTS),
    )
    missed = whole = 0.0
    for name, total in sums.items():
        up, down = (factor.double() for factor in merged[name])
        u, s, vh = torch.linalg.svd(total)
        kept = min(rank or 4, len(s))
        best = (u[:, :kept] * s[:kept]) @ vh[:kept]
        assert torch.linalg.norm(up @ down - best) <= 2**-22 * torch.linalg.norm(total)
        mine = torch.linalg.norm(up @ down - best)
        peer = torch.linalg.norm(expected[name][0].double() @ expected[name][1].double() - best)
        assert mine <= peer or mine <= 2**-23 * torch.linalg.norm(total)
        missed, whole = missed + float(s[kept:].square().sum()), whole + float(s.square().sum())
    assert report.error == pytest.approx((missed / whole) ** 0.5, abs=1e-7)


def test_a_rank_is_at_most_that_of_the_matrix(tmp_path):
    folders = make(tmp_path, {}, {"r": 2})
    report = fastmerge.merge_adapter_folders(folders, tmp_path / "out", rank=10**30)
    sides = [min(up.shape[0], down.shape[1]) for up, down in ours(tmp_path / "out").values()]
    assert [up.shape[1] for up, _ in ours(tmp_path / "out").values()] == sides
    assert report.ranks == (min(sides), max(sides)) and report.error == 0


@pytest.mark.parametrize("kind", ["ties_svd", "magnitude_prune_svd"])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_svd_of_pruned_deltas(tmp_path, kind, density):
    folders = make(tmp_path, {}, {"r": 2}, {"lora_alpha": 9})
    fastmerge.merge_adapter_folders(folders, tmp_path / "out", combination=kind, weights=WEIGHTS, density=density)
    merged, expected = ours(tmp_path / "out"), theirs(folders, WEIGHTS, kind, density=density)
    for name, factors in expected.items():
        product, other = (up @ down for up, down in (merged[name], factors))
        torch.testing.assert_close(product, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_scales_applied_twice(tmp_path):
    """As PEFT did before 0.21: the scale of the sum of two equal scales is squared."""
    folders = make(tmp_path, {}, {}, r=2, lora_alpha=6)
    for scaling in ("once", "twice"):
        fastmerge.merge_adapter_folders(folders, tmp_path / scaling, rank=4, scaling=scaling)
    once, twice = ours(tmp_path / "once"), ours(tmp_path / "twice")
    for name in once:
        torch.testing.assert_close(twice[name][0] @ twice[name][1], 3 * once[name][0] @ once[name][1])


@pytest.mark.parametrize("kind", ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"])
def test_random_types(tmp_path, kind):
    """The same seed draws the same; at density 1 nothing is random, so that PEFT's result is the oracle."""
    folders = make(tmp_path, {}, {"lora_alpha": 9})
    run = {"combination": kind, "weights": [0.5, 1.5]}
    for name, options in {"a": (0.5, 1), "b": (0.5, 1), "c": (0.5, 2), "all": (1.0, 1)}.items():
        density, seed = options
        fastmerge.merge_adapter_folders(folders, tmp_path / name, density=density, seed=seed, **run)
    a, b, c = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a) and not all(torch.equal(a[key], c[key]) for key in a)
    merged, expected = ours(tmp_path / "all"), theirs(folders, [0.5, 1.5], kind, density=1.0)
    for name, factors in expected.items():
        product, other = (up @ down for up, down in (merged[name], factors))
        torch.testing.assert_close(product, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
    if not kind.endswith("svd"):
        kept = a["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"]
        assert 0.2 < float((kept == 0).float().mean()) < 0.4  # both zero: a quarter


def test_one_adapter_is_linear(tmp_path):
    folders = make(tmp_path, {})
    report = fastmerge.merge_adapter_folders(folders, tmp_path / "out", combination="ties", density=0.5, weights=[-2.0])
    assert report.combination == "linear"
    merged, expected = ours(tmp_path / "out"), theirs(folders, [-2.0], "ties", density=0.5)
    for name, factors in expected.items():
        assert all(torch.equal(a, b) for a, b in zip(merged[name], factors, strict=True))


def test_modules_that_are_held_whole(tmp_path):
    """Kept where the adapters agree, as for a module that one of them has; refused where they differ, as PEFT does."""
    folders = make(tmp_path, {"modules_to_save": ["lm_head"]}, {"target_modules": "all-linear"})
    fastmerge.merge_adapter_folders(folders, tmp_path / "out", combination="cat")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["lm_head"]
    stored = load_file(f"{folders[0]}/adapter_model.safetensors")
    merged = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert torch.equal(merged["base_model.model.lm_head.weight"], stored["base_model.model.lm_head.weight"])
    ours(tmp_path / "out")
    folders = make(tmp_path, {}, {}, modules_to_save=["lm_head"])
    with pytest.raises(InvalidInput, match=r"lm_head.weight: is trained whole in .*adapter-0 and in .*adapter-1"):
        fastmerge.merge_adapter_folders(folders, tmp_path / "never", combination="cat")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter-0", "adapter-1", "out"]


def test_dtype_of_the_result(tmp_path):
    folders = make(tmp_path, {}, {})
    fastmerge.merge_adapter_folders(folders, tmp_path / "out", dtype="bfloat16")
    fastmerge.merge_adapter_folders(folders, tmp_path / "fine")
    coarse, fine = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "fine"))
    assert all(torch.equal(tensor, fine[name].bfloat16()) for name, tensor in coarse.items())


WRONG = [
    ({"combination": "tie"}, "combination: is 'tie', expected one of .*did you mean ties"),
    ({"combination": "ties"}, "density: is missing; ties keeps that share"),
    ({"combination": "dare_ties", "density": 0}, "density: is 0: dare divides by it"),
    ({"density": 0.5}, "density: has no effect on svd"),
    ({"combination": "cat", "rank": 3}, "rank: has no effect on cat"),
    ({"rank": 0}, "rank: is 0"),
    ({"weights": [1.0]}, "weights: has 1 values for 2 adapters"),
    ({"weights": [1.0, float("nan")]}, "weights: is .1.0, nan., expected finite numbers"),
    ({"scaling": "thrice"}, "scaling: is 'thrice', expected one of once, twice"),
    ({"dtype": "int8"}, "dtype: is 'int8', expected one of float32"),
    ({"majority_sign_method": "x"}, "majority_sign_method: is 'x'"),
]


@pytest.mark.parametrize(("options", "words"), WRONG)
def test_wrong_arguments(tmp_path, options, words):
    with pytest.raises(InvalidInput, match=words):
        fastmerge.merge_adapter_folders(["a", "b"], tmp_path / "never", **options)


OTHERS = [
    ({"r": 2}, "linear", r"_proj: has ranks 3 in .*, 2 in .*linear adds factors of one rank \(use svd or cat"),
    ({"use_dora": True}, "svd", "adapter-1: is DoRA"),
    ({"trainable_token_indices": [1]}, "svd", "adapter-1: holds trained tokens, which are no factors .fold it"),
]


@pytest.mark.parametrize(("changes", "kind", "words"), OTHERS)
def test_adapters_that_do_not_fit(tmp_path, changes, kind, words):
    folders = make(tmp_path, {}, changes)
    with pytest.raises(InvalidInput, match=words):
        fastmerge.merge_adapter_folders(folders, tmp_path / "never", combination=kind)


def test_other_folders_and_values(tmp_path):
    folders = make(tmp_path, {}, {})
    tuned = peft.get_peft_model(base_model(), peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    tuned.save_pretrained(tmp_path / "ia3")
    with pytest.raises(InvalidInput, match="peft_type IA3; only LoRA has factors that merge"):
        fastmerge.merge_adapter_folders([folders[0], tmp_path / "ia3"], tmp_path / "never")
    with pytest.raises(InvalidInput, match=r"holds no adapter_config.json \(name the folder of an adapter"):
        fastmerge.merge_adapter_folders([folders[0], tmp_path], tmp_path / "never")
    with pytest.raises(BudgetError, match=r"needs at least [0-9]+, for model\.layers"):
        fastmerge.merge_adapter_folders(folders, tmp_path / "never", combination="ties_svd", density=0.5, ram="10KiB")
    with pytest.raises(OutputError, match="exists; choose another folder"):
        fastmerge.merge_adapter_folders(folders, folders[0])
    path = f"{folders[1]}/adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "q_proj.lora_A" in name)
    save_file(tensors | {name: tensors[name].fill_(float("inf"))}, path)
    with pytest.raises(FastmergeError, match=r"adapter-1: model.layers.0.*: holds NaN or infinity"):
        fastmerge.merge_adapter_folders(folders, tmp_path / "never")
    save_file(tensors | {name: torch.ones(3, 16)}, path)
    with pytest.raises(InvalidInput, match=r"q_proj: has deltas of shapes 32 x 16 and 32 x 32 \(merge adapters of one"):
        fastmerge.merge_adapter_folders(folders, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_the_command(tmp_path):
    from click.testing import CliRunner

    from fastmerge.cli import main

    assert TYPES == COMBINATIONS
    folders = make(tmp_path, {}, {})
    arguments = [*folders, "--out", str(tmp_path / "out"), "--weight", "0.5", "--weight", "0.5", "--rank", "2"]
    result = CliRunner().invoke(main, ["merge-adapters", *arguments])
    assert result.exit_code == 0, result.output
    assert "4 modules by svd" in result.stdout and "of the norm of the merged deltas" in result.stdout
    ours(tmp_path / "out")
    result = CliRunner().invoke(main, ["merge-adapters", *arguments, "--json"])
    assert result.exit_code == 2 and "exists; choose another folder" in json.loads(result.stdout)["error"]
