"""Trains the models of the demo and measures them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .model import Decoder, Size
from .tasks import EQUALS, LANGUAGES, LENGTH, VOCAB, Dictionaries

BATCH = 96


def train_base(words: Dictionaries, seed: int, steps: int = 200) -> Decoder:
    """Return a model that knows the common half of every language."""
    torch.manual_seed(seed)
    model = Decoder(Size(VOCAB))
    generator = torch.Generator().manual_seed(seed)

    def batch() -> Tensor:
        share = BATCH // len(LANGUAGES)
        return torch.cat([words.sentences(i, share, generator, only_common=True) for i in range(len(LANGUAGES))])

    _train(model, batch, steps, learning_rate=3e-3)
    return model


def fine_tune(base: Decoder, words: Dictionaries, language: int, seed: int, steps: int = 60) -> Decoder:
    """Return a copy of ``base`` that learned all words of one language, and saw nothing of the others."""
    model = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(seed)
    _train(model, lambda: words.sentences(language, BATCH, generator), steps, learning_rate=1e-3)
    return model


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread: the matrices are tiny, and the result is the same on any number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def _train(model: Decoder, batch: Callable[[], Tensor], steps: int, learning_rate: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 20) * (1 - step / steps)
        tokens = batch()
        logits = model(tokens[:, :-1])[:, LENGTH:]
        loss = F.cross_entropy(logits.reshape(-1, VOCAB), tokens[:, LENGTH + 1 :].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@one_thread()
@torch.no_grad()
def accuracy(model: Decoder, words: Dictionaries, language: int, seed: int = 2**31, count: int = 1000) -> float:
    """Return the share of words of fresh random sentences that ``model`` translates correctly."""
    tokens = words.sentences(language, count, torch.Generator().manual_seed(seed))
    answers = model(tokens[:, :-1])[:, LENGTH:].argmax(-1)
    return (answers == tokens[:, LENGTH + 1 :]).float().mean().item()


@one_thread()
@torch.no_grad()
def answer(model: Decoder, tokens: Sequence[int]) -> list[int]:
    """Return the tokens that ``model`` finds likeliest after ``tokens`` and ``=``, one by one."""
    said = [*tokens, EQUALS]
    for _ in range(LENGTH):
        said.append(int(model(torch.tensor([said]))[0, -1].argmax()))
    return said[-LENGTH:]
