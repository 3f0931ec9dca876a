"""What a merge writes is a checkpoint that transformers loads and runs."""

from __future__ import annotations

import pytest
import torch
from commands import write_recipe
from tiny_models import make_tensors, save_model

import fastmerge

transformers = pytest.importorskip("transformers")


def save_tokenizer(folder, vocabulary: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{i}": i for i in range(vocabulary - 1)} | {"<unk>": vocabulary - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_and_runs_the_result(tied, tmp_path):
    base = make_tensors(seed=0, tied=tied)
    for seed, name in enumerate(("base", "one", "two", "three")):
        save_model(tmp_path / name, base if seed == 0 else make_tensors(seed=seed, base=base))
        save_tokenizer(tmp_path / name, 256)
    fastmerge.merge(write_recipe(tmp_path / "r.yml", tmp_path), tmp_path / "out", shard_size="100kB")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.bfloat16
    expected = fastmerge.merge_state_dicts(
        base, [make_tensors(seed=seed, base=base) for seed in (1, 2, 3)], method="ties", weight=1.0, density=0.5
    )
    loaded = model.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(loaded[name], tensor), name
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = tokenizer("w1 w7 w9", return_tensors="pt").input_ids
    assert tokens.tolist() == [[1, 7, 9]]
    logits = model(tokens).logits
    assert logits.shape == (1, 3, 256) and torch.isfinite(logits).all()
    assert model.generate(tokens, max_new_tokens=2, do_sample=False, pad_token_id=0).shape[1] > 3
