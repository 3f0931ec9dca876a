"""Fisher and RegMean with files of statistics, and the statistics themselves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from sources import Chunked
from tiny_merges import Merge, expected, outputs_of
from tiny_models import make_tensors, save_model

import fastmerge.statistics
from fastmerge import functional
from fastmerge.engine import run, verify
from fastmerge.errors import FastmergeError
from fastmerge.kernels import GRID
from fastmerge.methods import Group, get_method
from fastmerge.steps.driver import merge_source
from fastmerge.steps.source import Resident


@pytest.fixture
def written(tmp_path):
    """Write statistics, one file per dict of tensors, and return their paths."""

    def write(*files):
        for i, tensors in enumerate(files):
            save_file(tensors, tmp_path / f"{i}.safetensors")
        return [str(tmp_path / f"{i}.safetensors") for i in range(len(files))]

    return write


def test_fisher_by_hand(written):
    a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 6.0, 7.0])
    files = written({"tensor": torch.tensor([3.0, 0.0, 4.0])}, {"tensor": torch.tensor([0.0, 2.0, 0.0])})
    plain = functional.fisher([a, b], fisher=files, normalize=False, floor=0)
    assert torch.equal(plain, torch.tensor([1.0, 6.0, 3.0]))
    # Divided by their norms 5 and 2: weights 0.6, 0, 0.8 and 0, 1, 0; a floor of 0.2 on each.
    merged = functional.fisher([a, b], fisher=files, floor=0.2)
    assert torch.allclose(merged, torch.tensor([(0.8 * 1 + 0.2 * 5), (0.2 * 2 + 1.2 * 6) / 1.4, (3 + 0.2 * 7) / 1.2]))
    # Where no model has information, without a floor, the mean.
    none = written({"tensor": torch.zeros(3)}, {"tensor": torch.zeros(3)})
    assert torch.equal(functional.fisher([a, b], fisher=none, floor=0, weight=[3, 1]), 0.75 * a + 0.25 * b)
    # And without files.
    assert torch.equal(functional.fisher([a, b], weight=[3, 1]), functional.linear([a, b], weight=[3, 1]))


def test_fisher_is_read_in_parts(written, generator):
    tensors = [torch.randn(3 * GRID + 5, generator=generator).bfloat16() for _ in range(2)]
    files = written(*({"w": torch.rand(len(t), generator=generator).half()} for t in tensors))
    method = get_method("fisher")
    values = {"weight": (1.0, 0.5), "fisher": tuple(files), "normalize": True, "floor": 1e-6}
    group = Group("w", tuple(tensors[0].shape), 2, values)
    whole, parts = torch.full((2, 3 * GRID + 5), float("nan"))
    merge_source(method, group, Resident(None, tensors), whole)
    merge_source(method, group, Chunked(None, tensors, 1), parts)
    assert torch.equal(whole, parts) and whole.isfinite().all()


def test_regmean_solves_its_least_squares(written, generator):
    inputs = [torch.randn(40, 6, generator=generator) @ torch.randn(6, 6, generator=generator) for _ in range(2)]
    weights = [torch.randn(4, 6, generator=generator) for _ in range(2)]
    files = written(*({"tensor": x.T @ x / len(x)} for x in inputs))
    merged = functional.regmean(weights, gram=files, reduction=1, ridge=0, weight=[1, 3]).double()
    # The gradient of sum_k w_k |X_k (W - W_k)^T|^2 / n vanishes.
    slope = sum(
        share * (merged - w.double()) @ (x.T @ x / len(x)).double()
        for share, w, x in zip((1, 3), weights, inputs, strict=True)
    )
    assert slope.abs().max() < 1e-4


def test_regmean_by_hand(written):
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 6.0]])
    # Each input matters to one model only.
    files = written({"tensor": torch.diag(torch.tensor([1.0, 0.0]))}, {"tensor": torch.diag(torch.tensor([0.0, 1.0]))})
    assert torch.allclose(functional.regmean([a, b], gram=files, ridge=0), torch.tensor([[1.0, 6.0]]))
    # Inputs that never occur leave the mean, if there is a ridge.
    dead = written({"tensor": torch.diag(torch.tensor([1.0, 0.0]))}, {"tensor": torch.diag(torch.tensor([1.0, 0.0]))})
    assert torch.allclose(functional.regmean([a, b], gram=dead), torch.tensor([[2.0, 4.0]]))
    with pytest.raises(ValueError, match="tensor: the Gram matrices do not determine the weights; raise ridge"):
        functional.regmean([a, b], gram=dead, ridge=0)
    # Equal inputs give the mean, and without what lies off the diagonal every input decides for itself.
    full = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    same = written({"tensor": full}, {"tensor": full})
    assert torch.allclose(functional.regmean([a, b], gram=same), torch.tensor([[2.0, 4.0]]))
    different = written({"tensor": full}, {"tensor": 3 * full})
    assert torch.allclose(functional.regmean([a, b], gram=different, reduction=0), 0.25 * a + 0.75 * b)
    assert torch.equal(functional.regmean([a, b]), functional.linear([a, b], weight=1))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["absent.safetensors", ""], r"tensor: gram absent\.safetensors cannot be read: .*No such file"),
        (["good", ""], r"tensor: model 1 has no gram; give one to every model, or to none"),
        (["good", "other"], r"tensor: .*1\.safetensors has no such tensor, but .*0\.safetensors has one"),
        (["good", "wide"], r"tensor: is a weight of shape \(1, 2\), but a Gram matrix \(3, 3\) in .*2\.safetensors"),
    ],
)
def test_statistics_that_do_not_fit(files, message, written):
    names = dict(
        zip(
            ("good", "other", "wide"),
            written({"tensor": torch.eye(2)}, {"x": torch.eye(2)}, {"tensor": torch.eye(3)}), strict=True,
        )
    )  # fmt: skip
    tensors = [torch.ones(1, 2), torch.ones(1, 2)]
    with pytest.raises(ValueError, match=message):
        functional.regmean(tensors, gram=[names.get(file, file) for file in files])


def test_regmean_refuses_what_is_not_finite(written):
    files = written({"tensor": torch.eye(2)}, {"tensor": torch.full((2, 2), float("nan"))})
    with pytest.raises(ValueError, match="tensor: an input or its statistics hold NaN or infinity"):
        functional.regmean([torch.ones(1, 2)] * 2, gram=files)


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_recipes_name_the_files(method, tmp_path, generator):
    base = make_tensors(0, hidden=32, inner=80, vocab=96, layers=1)
    linear = "model.layers.0.mlp.up_proj.weight"
    lines = [f"merge_method: {method}", "models:"]
    for k in range(2):
        tuned = make_tensors(k + 1, base=base)
        save_model(tmp_path / f"model{k}", tuned)
        if method == "fisher":
            statistics = {name: torch.rand(t.shape, generator=generator) for name, t in tuned.items()}
        else:
            x = torch.randn(64, 32, generator=generator)
            statistics = {linear: x.T @ x / 64}
        save_file(statistics, tmp_path / f"{k}.safetensors")
        key = "fisher" if method == "fisher" else "gram"
        lines.append(f"- {{model: {tmp_path}/model{k}, parameters: {{{key}: {tmp_path}/{k}.safetensors}}}}")
    merge = Merge("\n".join(lines) + "\n", tmp_path / "out")
    plan = merge.plan()
    run(plan, merge.out)
    found, wanted = outputs_of(merge.out), expected(plan)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert verify(merge.out).ok
    means = functional.linear([load_file(tmp_path / f"model{k}/model.safetensors")[linear] for k in range(2)], weight=1)
    assert not torch.equal(found[linear], means)


def test_files_without_a_name_that_is_merged_are_refused(tmp_path):
    for k in range(2):
        save_model(tmp_path / f"model{k}", make_tensors(k, hidden=16, inner=24, vocab=40, layers=1))
        save_file({"base.norm.weight": torch.ones(16)}, tmp_path / f"{k}.safetensors")
    models = [
        {"model": str(tmp_path / f"model{k}"), "parameters": {"fisher": str(tmp_path / f"{k}.safetensors")}}
        for k in range(2)
    ]
    with pytest.raises(FastmergeError, match=r"fisher .*0\.safetensors: none of its 1 tensors \(base\.norm\.weight"):
        fastmerge.check({"merge_method": "fisher", "models": models})


def test_a_merge_does_not_go_on_with_other_statistics(tmp_path, generator):
    """What an interrupted merge has finished is taken over by the plan of the same digest."""
    models = []
    for k in range(2):
        tuned = make_tensors(k, hidden=16, inner=24, vocab=40, layers=1)
        save_model(tmp_path / f"model{k}", tuned)
        save_file(
            {n: torch.rand(t.shape, generator=generator) for n, t in tuned.items()}, tmp_path / f"{k}.safetensors"
        )
        models.append({"model": f"{tmp_path}/model{k}", "parameters": {"fisher": f"{tmp_path}/{k}.safetensors"}})
    recipe = {"merge_method": "fisher", "models": models}
    digest = fastmerge.check(recipe).digest
    assert fastmerge.check(recipe).digest == digest
    save_file({n: torch.rand(t.shape, generator=generator) for n, t in tuned.items()}, tmp_path / "1.safetensors")
    assert fastmerge.check(recipe).digest != digest


class Network(torch.nn.Module):
    """A language model of two linear layers, with the outputs of transformers."""

    def __init__(self, generator):
        super().__init__()
        self.embed = torch.nn.Embedding(11, 5)
        self.first, self.head = torch.nn.Linear(5, 7, bias=False), torch.nn.Linear(7, 11, bias=False)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.head(self.first(self.embed(input_ids)).tanh()))


TEXTS = ["abcab", "c", "ddbeca"]


def encode(text):
    return {"input_ids": [ord(letter) - ord("a") for letter in text]}


def test_empirical_fisher(tmp_path, generator):
    network, seen = Network(generator), []
    fastmerge.statistics.fisher(
        network, TEXTS, tmp_path / "f.safetensors", tokenizer=encode, labels="texts",
        progress=lambda *step: seen.append(step),
    )  # fmt: skip
    found = load_file(tmp_path / "f.safetensors")
    assert seen == [(1, 3), (2, 3), (3, 3)]
    squares = torch.zeros(7, 5)
    for text in (TEXTS[0], TEXTS[2]):  # one token predicts nothing
        tokens = torch.tensor(encode(text)["input_ids"])
        scores = network(tokens[None]).logits[0, :-1].log_softmax(-1)
        (grad,) = torch.autograd.grad(scores[torch.arange(len(tokens) - 1), tokens[1:]].sum(), network.first.weight)
        squares += grad**2 / 2
    assert torch.allclose(found["first.weight"], squares, rtol=1e-4)
    assert set(found) == {"embed.weight", "first.weight", "head.weight"}
    assert all(parameter.grad is None for parameter in network.parameters())


def test_sampled_fisher_depends_on_its_seed(tmp_path, generator):
    network = Network(generator)
    results = []
    for i, seed in enumerate((1, 1, 2)):
        fastmerge.statistics.fisher(network, TEXTS, tmp_path / f"{i}.safetensors", tokenizer=encode, seed=seed)
        results.append(load_file(tmp_path / f"{i}.safetensors")["head.weight"])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert (results[0] >= 0).all() and results[0].any()


def test_grams(tmp_path, generator):
    network = Network(generator)
    fastmerge.statistics.grams(network, TEXTS, tmp_path / "g.safetensors", tokenizer=encode, max_length=4)
    found = load_file(tmp_path / "g.safetensors")
    tokens = torch.tensor([i for text in (TEXTS[0], TEXTS[2]) for i in encode(text)["input_ids"][:4]])
    inputs = network.embed(tokens).detach()
    assert torch.allclose(found["first.weight"], inputs.T @ inputs / 8, rtol=1e-5, atol=1e-6)
    hidden = network.first(inputs).tanh().detach()
    assert torch.allclose(found["head.weight"], hidden.T @ hidden / 8, rtol=1e-5, atol=1e-6)
    assert not network.first._forward_pre_hooks


def test_statistics_of_mistakes(tmp_path, generator):
    network = Network(generator)
    network.inner = type("Conv1D", (torch.nn.Module,), {})()
    with pytest.raises(FastmergeError, match=r"1 layers \(inner, \.\.\) are Conv1D of transformers"):
        fastmerge.statistics.grams(network, TEXTS, tmp_path / "g", tokenizer=encode)
    del network.inner
    with pytest.raises(FastmergeError, match="none of 1 texts has two tokens"):
        fastmerge.statistics.grams(network, ["a"], tmp_path / "g", tokenizer=encode)
    with pytest.raises(FastmergeError, match="a model that is loaded needs its tokenizer"):
        fastmerge.statistics.fisher(network, TEXTS, tmp_path / "g")
    with pytest.raises(ValueError, match="labels is 'true'; expected sampled or texts"):
        fastmerge.statistics.fisher(network, TEXTS, tmp_path / "g", tokenizer=encode, labels="true")
    assert not any(tmp_path.iterdir())
