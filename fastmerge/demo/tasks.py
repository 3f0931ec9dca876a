"""Translation of three made-up languages: words of a language, ``=``, and their meanings, word by word."""

from __future__ import annotations

import torch
from torch import Tensor

LANGUAGES = ("red", "green", "blue")
WORDS = 32
LENGTH = 4
# Tokens: the meanings, then ``=``, then the words of each language.
EQUALS = WORDS
VOCAB = WORDS + 1 + len(LANGUAGES) * WORDS


class Dictionaries:
    """The meaning of every word, and the half of each language that the base model gets to see."""

    def __init__(self, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.meanings = [torch.randperm(WORDS, generator=generator) for _ in LANGUAGES]
        self.common = [torch.randperm(WORDS, generator=generator)[: WORDS // 2] for _ in LANGUAGES]

    def sentences(self, language: int, count: int, generator: torch.Generator, only_common: bool = False) -> Tensor:
        """Return ``count`` random sentences with their translations [count, 2 * LENGTH + 1]."""
        words = self.common[language] if only_common else torch.arange(WORDS)
        chosen = words[torch.randint(len(words), (count, LENGTH), generator=generator)]
        tokens = WORDS + 1 + language * WORDS + chosen
        return torch.cat((tokens, torch.full((count, 1), EQUALS), self.meanings[language][chosen]), dim=1)
