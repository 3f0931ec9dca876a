"""Embeddings and heads are merged by token, whatever row each model keeps it in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from recipes import minimal_recipe
from safetensors.torch import load_file, save_file
from vocabularies import RECIPES, exact_tensors, rows_of, save_word_model, save_word_models, vocabulary_of

import fastmerge
from fastmerge.engine import verify
from fastmerge.engine.running import RunOptions, run
from fastmerge.errors import InvalidInput
from fastmerge.methods import all_methods
from fastmerge.plan import make_plan
from fastmerge.recipe import load

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "vocabulary" / "mergekit.json").read_text())["cases"]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
METHODS = list(all_methods().values())


@pytest.fixture
def models(tmp_path, monkeypatch):
    """The folder of ``vocabularies.MODELS``, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    save_word_models(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", RECIPES)
def test_like_mergekit(models, case):
    fastmerge.merge(RECIPES[case], "out")
    expected, config = GOLDEN[case], json.loads((models / "out" / "config.json").read_text())
    assert config["vocab_size"] == expected["vocab_size"]
    found = rows_of(models / "out")
    for name, rows in expected["rows"].items():
        assert found[name].keys() == rows.keys()
        for token, row in rows.items():
            if token:
                assert found[name][token] == row, (name, token)
            else:
                # A mean of at most 16 values below 1, in float32 there and in float64 here.
                assert found[name][token] == pytest.approx(row, abs=16 * 2**-24)
    assert verify("out").ok
    if case != "stripped":
        assert {"<unk>", "<s>"} <= vocabulary_of(models / "out").keys()


def test_equal_vocabularies_cost_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for salt, name in enumerate("ab"):
        save_word_model(tmp_path / name, ["<unk>", "x"], ["<s>"], salt=salt)
    text = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"
    plan, without = make_plan(load(text + "tokenizer: {}\n")), make_plan(load(text))
    assert plan.outputs == without.outputs and plan.notes == without.notes == ()
    assert not plan.gathered and plan.bytes_read == without.bytes_read


def materialized(folder: Path, rows: list[int]) -> None:
    """Write the rows of embedding and head of a model in another order."""
    tensors = load_file(folder / "model.safetensors")
    tensors |= {name: tensors[name][rows].clone() for name in (EMBED, HEAD)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def permuted_pair(folder: Path, count: int, **options) -> None:
    """Write models under ``mixed`` with vocabularies in different orders, and the same under ``plain``, reordered."""
    tokens = ["<unk>", *"abcdefg", "<s>"]
    orders = [list(range(9)), [8, 3, 1, 0, 2, 4, 7, 6, 5], [1, 0, 2, 3, 4, 5, 6, 8, 7]]
    for k in range(count):
        order = orders[k % 3]
        save_word_model(folder / "mixed" / str(k), [tokens[i] for i in order], salt=k, **options)
        save_word_model(folder / "plain" / str(k), tokens, salt=k, **options)
        materialized(folder / "plain" / str(k), [order.index(i) for i in range(9)])


def outputs(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = minimal_recipe(method)
    count = len(recipe["models"])
    permuted_pair(tmp_path, count + 1, dtype=torch.bfloat16)
    for kind in ("mixed", "plain"):
        names = [f"{kind}/{k}" for k in range(count + 1)]
        own = {**recipe, "models": [{"model": name} for name in names[1:]], "tokenizer_source": names[0]}
        if "base_model" in recipe:
            own["base_model"] = names[0]
        else:
            own["models"] = [{"model": name} for name in names[:count]]
        fastmerge.merge(own, f"{kind}-out", threads=1)
    mixed, plain = outputs(tmp_path / "mixed-out"), outputs(tmp_path / "plain-out")
    assert mixed.keys() == plain.keys()
    for name, tensor in plain.items():
        assert torch.equal(mixed[name], tensor), name


def test_chunks_and_slices(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count = 9000
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1)).tolist()
    tokens = ["<unk>", *(f"t{i}" for i in range(1, count))]
    save_word_model(tmp_path / "a", tokens, salt=1)
    save_word_model(tmp_path / "b", [tokens[i] for i in order], salt=2)
    text = "merge_method: %s\nbase_model: a\ndtype: bfloat16\nparameters: {density: 0.5, weight: 1}\n"
    text += "slices: [{sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]}]\n"
    text += "tokenizer: {source: base, pad_to_multiple_of: 64}\n"
    for method in ("ties", "task_arithmetic"):
        plan = make_plan(load(text % method if method == "ties" else (text % method).replace("density: 0.5, ", "")))
        run(plan, f"{method}-1", RunOptions(chunk=65536, threads=2))
        run(plan, f"{method}-2", RunOptions(threads=1))
        assert outputs(tmp_path / f"{method}-1")[EMBED].shape[0] == 9024
        one, two = outputs(tmp_path / f"{method}-1"), outputs(tmp_path / f"{method}-2")
        assert all(torch.equal(one[name], two[name]) for name in one)
    places = torch.tensor(order).argsort()
    expected = exact_tensors(2, count)[EMBED][places].to(torch.bfloat16)
    assert torch.equal(outputs(tmp_path / "task_arithmetic-1")[EMBED][:count], expected)


def test_adapters_and_dtypes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    permuted_pair(tmp_path, 2)
    for kind in ("mixed", "plain"):
        save_word_model(tmp_path / kind / "0", ["<unk>", *"abcdefg", "<s>"], salt=3, dtype=torch.bfloat16)
        rows = torch.arange(18.0).view(9, 2) / 8
        if kind == "plain":
            order = [8, 3, 1, 0, 2, 4, 7, 6, 5]
            rows = rows[[order.index(i) for i in range(9)]]
        adapter = tmp_path / kind / "lora"
        adapter.mkdir()
        factors = {"lora_embedding_A": rows.t().contiguous(), "lora_embedding_B": torch.ones(8, 2)}
        name = "base_model.model.model.embed_tokens."
        save_file({name + key: t for key, t in factors.items()}, adapter / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["embed_tokens"]}
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        fastmerge.merge(
            {
                "merge_method": "task_arithmetic",
                "base_model": f"{kind}/0",
                "models": [{"model": f"{kind}/1+{kind}/lora", "parameters": {"weight": 0.5}}],
                "tokenizer_source": "union",
            },
            f"{kind}-out",
        )
    mixed, plain = outputs(tmp_path / "mixed-out"), outputs(tmp_path / "plain-out")
    assert mixed[EMBED].dtype == torch.float32
    assert all(torch.equal(mixed[name], plain[name]) for name in plain)


def test_ids_of_special_tokens_follow_the_tokenizer(models):
    fastmerge.merge(RECIPES["model"], "out")
    config = json.loads((models / "out" / "config.json").read_text())
    assert config["bos_token_id"] == config["eos_token_id"] == vocabulary_of(models / "out")["<s>"] == 6
    # Of the base's generation config: 1 is "a" there.
    generation = json.loads((models / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == vocabulary_of(models / "out")["a"] == 3


def test_stacks_of_models_with_other_tokens(tmp_path, monkeypatch):
    """The embedding of the first slice and the head of the last one get the same tokens."""
    monkeypatch.chdir(tmp_path)
    for salt, (name, tokens) in enumerate({"a": "xy", "b": "yxz"}.items()):
        save_word_model(tmp_path / name, ["<unk>", *tokens], ["<s>"], salt=salt)
    text = "merge_method: passthrough\nslices:\n" + "".join(
        f"  - sources: [{{model: {name}, layer_range: [0, 1]}}]\n" for name in "ab"
    )
    with pytest.raises(InvalidInput, match=r"which gives the embedding .*tokenizer_source: base or union"):
        fastmerge.check(text)
    fastmerge.merge(text + "tokenizer_source: union\n", "out")
    found, first, last = rows_of(tmp_path / "out"), rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    assert found[EMBED].keys() == found[HEAD].keys() == {"<unk>", "x", "y", "z", "<s>"}
    assert {token: found[EMBED][token] for token in first[EMBED]} == first[EMBED]
    assert found[HEAD] == last[HEAD]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 5


def test_biases_of_heads(tmp_path, monkeypatch):
    """By token, or cut with the rows of the head; without either, models of different sizes are refused."""
    monkeypatch.chdir(tmp_path)
    for salt, (name, tokens) in enumerate({"a": "xy", "b": "yxz"}.items()):
        folder = save_word_model(tmp_path / name, ["<unk>", *tokens], salt=salt)
        tensors = load_file(folder / "model.safetensors") | {
            "lm_head.bias": torch.arange(1.0 + len(tokens)) + 10 * salt
        }
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    text = "merge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: a}, {model: b}]\n"
    with pytest.raises(InvalidInput, match="the vocabulary has 4 rows, that of a has 3"):
        fastmerge.check(text)
    fastmerge.merge(text + "tokenizer_source: union\n", "out")
    assert load_file("out/model.safetensors")["lm_head.bias"].tolist() == [5, 6.5, 6.5, 13]
    fastmerge.merge(text, "cut", truncate_embeddings=True)
    assert load_file("cut/model.safetensors")["lm_head.bias"].tolist() == [5, 6, 7]


def test_files_of_other_kinds(models):
    for name, tokens in {"a": ["<unk>", "x"], "b": ["<unk>", "y", "x"]}.items():
        save_word_model(models / name, tokens, salt=len(tokens))
        (models / name / "tokenizer.json").unlink()
        (models / name / "vocab.txt").write_text("\n".join(tokens))
    text = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\ntokenizer_source: union\n"
    fastmerge.merge(text, "out")
    assert json.loads((models / "out" / "added_tokens.json").read_text()) == {"y": 2}
    decoder = json.loads((models / "out" / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert decoder["2"]["content"] == "y"
    a, b = exact_tensors(2, 2)[EMBED], exact_tensors(3, 3)[EMBED]
    expected = torch.stack([(a[0] + b[0]) / 2, (a[1] + b[2]) / 2, b[1]])
    assert torch.equal(outputs(models / "out")[EMBED], expected)
    (models / "b" / "vocab.txt").rename(models / "b" / "x.tiktoken")
    with pytest.raises(InvalidInput, match=r"has x\.tiktoken, and a has vocab\.txt: their tokens cannot be compared"):
        make_plan(load(text))


def test_rules_that_name_nothing(models):
    def refusal(tokens: str) -> str:
        with pytest.raises(InvalidInput) as caught:
            make_plan(load(RECIPES["union"].replace("tokenizer_source: union", f"tokenizer: {{tokens: {tokens}}}")))
        return str(caught.value)

    assert "tokens: f: c has no row for 'f'" in refusal("{f: {source: c}}")
    assert "tokens: f: nowhere is no model of the recipe" in refusal("{f: {source: nowhere}}")
    assert "tokens: f: c has 7 rows" in refusal("{f: {source: {kind: model_token, model: c, token_id: 7}}}")
    with pytest.raises(InvalidInput, match="tokenizer_source: nowhere is no model of the recipe"):
        make_plan(load(RECIPES["union"].replace("union", "nowhere")))


def test_the_digest_knows_the_tokens(models):
    before = make_plan(load(RECIPES["union"])).digest
    assert make_plan(load(RECIPES["union"])).digest == before
    text = (models / "c" / "tokenizer.json").read_text()
    (models / "c" / "tokenizer.json").write_text(text.replace('"a": 1, "b": 2', '"b": 1, "a": 2'))
    assert make_plan(load(RECIPES["union"])).digest != before


def test_transformers_loads_and_encodes(models):
    transformers = pytest.importorskip("transformers")
    fastmerge.merge(RECIPES["union"], "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(models / "out")
    ids = vocabulary_of(models / "out")
    assert tokenizer.get_vocab() == ids
    text = tokenizer("a<tool>b", add_special_tokens=False, return_tensors="pt").input_ids
    assert text.tolist() == [[ids["a"], ids["<tool>"], ids["b"]]]
    model = transformers.AutoModelForCausalLM.from_pretrained(models / "out")
    assert model.get_input_embeddings().weight.shape[0] == len(ids)
    assert torch.isfinite(model(text).logits).all()


def test_the_manifest_says_which_rows_were_read(models):
    fastmerge.merge(RECIPES["union"], "out")
    manifest = json.loads((models / "out" / "fastmerge.json").read_text())
    for name in (EMBED, HEAD):
        sums = manifest["sources"][name]
        assert len(sums) == len(manifest["rows"][name]) and all(sums)
        for item in manifest["rows"][name]:
            for source in item["of"]:
                stored = load_file(models / source["model"] / "model.safetensors")[source["name"]]
                assert sum(count for _, count in source["ranges"]) == source["read"] <= len(stored)
                assert all(first + count <= len(stored) for first, count in source["ranges"])
    assert not manifest["rows"].keys() - {EMBED, HEAD}


def test_a_swapped_row_is_named(models):
    fastmerge.merge(RECIPES["union"], "out")
    manifest = json.loads((models / "out" / "fastmerge.json").read_text())
    source = manifest["rows"][EMBED][0]["of"][0]
    path = models / source["model"] / "model.safetensors"
    tensors = load_file(path)
    tensors[EMBED][source["ranges"][0][0]] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    (swapped, *_) = verify("out").mismatches
    assert swapped.where.startswith(f"{EMBED} of ") and "this input is not what was merged" in swapped.what
